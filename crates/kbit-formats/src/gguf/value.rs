//! Metadata of a GGUF file: ordered keys with exactly typed values.

use crate::FormatError;
use std::path::Path;

macro_rules! values {
    ($($variant:ident($rust:ty) = $id:literal,)*) => {
        /// A metadata value with its exact type.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "the names are the types")]
        pub enum Value { $($variant($rust),)* Array(Array) }

        /// A list of values of one type.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "the names are the types")]
        pub enum Array { $($variant(Vec<$rust>),)* Nested(Vec<Array>) }

        impl Value {
            /// The type's number in the file.
            #[must_use]
            pub const fn type_id(&self) -> u32 {
                match self { $(Self::$variant(_) => $id,)* Self::Array(_) => 9 }
            }
        }

        impl Array {
            /// The number of its elements' type in the file.
            #[must_use]
            pub const fn type_id(&self) -> u32 {
                match self { $(Self::$variant(_) => $id,)* Self::Nested(_) => 9 }
            }

            /// Number of elements.
            #[must_use]
            pub const fn len(&self) -> usize {
                match self { $(Self::$variant(items) => items.len(),)* Self::Nested(items) => items.len() }
            }

            /// True without elements.
            #[must_use]
            pub const fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }
    };
}

values! {
    U8(u8) = 0,
    I8(i8) = 1,
    U16(u16) = 2,
    I16(i16) = 3,
    U32(u32) = 4,
    I32(i32) = 5,
    F32(f32) = 6,
    Bool(bool) = 7,
    String(String) = 8,
    U64(u64) = 10,
    I64(i64) = 11,
    F64(f64) = 12,
}

impl Value {
    /// A whole number of any width, as i128; `None` for other types.
    #[must_use]
    pub fn as_integer(&self) -> Option<i128> {
        Some(match self {
            Self::U8(value) => (*value).into(),
            Self::I8(value) => (*value).into(),
            Self::U16(value) => (*value).into(),
            Self::I16(value) => (*value).into(),
            Self::U32(value) => (*value).into(),
            Self::I32(value) => (*value).into(),
            Self::U64(value) => (*value).into(),
            Self::I64(value) => (*value).into(),
            _ => return None,
        })
    }

    /// As JSON; numbers that JSON has not (NaN, infinity) as text.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        fn float(value: f64) -> serde_json::Value {
            serde_json::Number::from_f64(value)
                .map_or_else(|| value.to_string().into(), serde_json::Value::Number)
        }
        fn array(items: &Array) -> serde_json::Value {
            match items {
                Array::U8(items) => items.clone().into(),
                Array::I8(items) => items.clone().into(),
                Array::U16(items) => items.clone().into(),
                Array::I16(items) => items.clone().into(),
                Array::U32(items) => items.clone().into(),
                Array::I32(items) => items.clone().into(),
                Array::F32(items) => {
                    items.iter().map(|item| float(shortest(*item))).collect::<Vec<_>>().into()
                }
                Array::Bool(items) => items.clone().into(),
                Array::String(items) => items.clone().into(),
                Array::U64(items) => items.clone().into(),
                Array::I64(items) => items.clone().into(),
                Array::F64(items) => items.iter().map(|item| float(*item)).collect::<Vec<_>>().into(),
                Array::Nested(items) => items.iter().map(array).collect::<Vec<_>>().into(),
            }
        }
        match self {
            Self::U8(value) => (*value).into(),
            Self::I8(value) => (*value).into(),
            Self::U16(value) => (*value).into(),
            Self::I16(value) => (*value).into(),
            Self::U32(value) => (*value).into(),
            Self::I32(value) => (*value).into(),
            Self::F32(value) => float(shortest(*value)),
            Self::Bool(value) => (*value).into(),
            Self::String(value) => value.clone().into(),
            Self::U64(value) => (*value).into(),
            Self::I64(value) => (*value).into(),
            Self::F64(value) => float(*value),
            Self::Array(items) => array(items),
        }
    }
}

/// The double with the shortest decimal form that rounds to `value`, so that 1e-5 prints as such.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

/// Ordered metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// No keys.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Sets `key`: in its place where it is there, else at the end.
    pub fn insert(&mut self, key: impl Into<String>, value: Value) {
        let key = key.into();
        match self.entries.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key, value)),
        }
    }

    /// Adds a key that is known to be new: no search, so that reading many keys takes linear time.
    pub(super) fn push(&mut self, key: String, value: Value) {
        self.entries.push((key, value));
    }

    /// Removes `key`; its value, if it was there.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let index = self.entries.iter().position(|(known, _)| known == key)?;
        Some(self.entries.remove(index).1)
    }

    /// Keys and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn needed<T>(&self, key: &str, found: Option<T>) -> Result<T, FormatError> {
        found.ok_or_else(|| missing(key, "is missing; the model's metadata is incomplete: convert it anew"))
    }

    /// A whole number that fits u32.
    ///
    /// # Errors
    /// When it is missing, of another type, or out of range.
    pub fn u32(&self, key: &str) -> Result<u32, FormatError> {
        self.needed(key, self.opt_u32(key)?)
    }

    /// A whole number that fits u32, where the key is there.
    ///
    /// # Errors
    /// When it is of another type or out of range.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>, FormatError> {
        self.integer(key)
    }

    /// A whole number that fits u64.
    ///
    /// # Errors
    /// When it is missing, of another type, or out of range.
    pub fn u64(&self, key: &str) -> Result<u64, FormatError> {
        self.needed(key, self.integer(key)?)
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str) -> Result<Option<T>, FormatError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_integer().and_then(|number| T::try_from(number).ok());
        number
            .map(Some)
            .ok_or_else(|| missing(key, "is not a whole number in range; the file is damaged: get it anew"))
    }

    /// A number.
    ///
    /// # Errors
    /// When it is missing or of another type.
    pub fn f32(&self, key: &str) -> Result<f32, FormatError> {
        self.needed(key, self.opt_f32(key)?)
    }

    /// A number, where the key is there.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(value)) => Ok(Some(*value)),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "hyper-parameters are stored in single precision"
            )]
            Some(Value::F64(value)) => Ok(Some(*value as f32)),
            Some(_) => Err(missing(key, "is not a number; the file is damaged: get it anew")),
        }
    }

    /// `true` or `false`, where the key is there.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(missing(key, "is not true or false; the file is damaged: get it anew")),
        }
    }

    /// Text.
    ///
    /// # Errors
    /// When it is missing or of another type.
    pub fn str(&self, key: &str) -> Result<&str, FormatError> {
        self.needed(key, self.opt_str(key)?)
    }

    /// Text, where the key is there.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(missing(key, "is not text; the file is damaged: get it anew")),
        }
    }

    /// A list of texts.
    ///
    /// # Errors
    /// When it is missing or of another type.
    pub fn strings(&self, key: &str) -> Result<&[String], FormatError> {
        match self.get(key) {
            Some(Value::Array(Array::String(items))) => Ok(items),
            Some(_) => Err(missing(key, "is not a list of texts; the file is damaged: get it anew")),
            None => self.needed(key, None),
        }
    }
}

fn missing(key: &str, reason: &str) -> FormatError {
    FormatError::metadata(Path::new(""), key, reason)
}
