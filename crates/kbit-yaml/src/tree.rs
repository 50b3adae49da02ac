//! YAML as a tree in which every key and value knows its line and column.
//!
//! Documents are checked against declared keys on this tree, so that an error can point at the very key. Parsing is `serde_yaml` (serde-saphyr): duplicate keys are refused and the input is bounded by its budgets.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::Spanned;
use std::fmt;

/// A place in a text: line and column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Place {
    /// Line, from 1; 0 where the parser could not tell.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
}

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What stands there.
    pub value: Tree,
    /// Where it stands.
    pub place: Place,
}

/// What a node can be.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// Text.
    Str(String),
    /// `- item` or `[item, ...]`.
    List(Vec<Node>),
    /// `key: value`; keys in the order of the text.
    Map(Vec<(MapKey, Node)>),
}

/// A key of a map with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct MapKey {
    /// The key itself.
    pub name: String,
    /// Where it stands.
    pub place: Place,
}

impl Node {
    /// Parses one YAML document.
    ///
    /// # Errors
    /// The place and the message of the parser.
    pub fn parse(text: &str) -> Result<Self, (Place, String)> {
        match serde_yaml::from_str::<Spanned<Tree>>(text) {
            Ok(spanned) => Ok(spanned.into()),
            Err(error) => {
                let place = error.location().map_or_else(Place::default, |location| Place {
                    line: location.line(),
                    column: location.column(),
                });
                Err((place, first_line(&error.without_snippet().to_string())))
            }
        }
    }

    /// The value under `name`, where this is a map that has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Tree::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text, where this is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Tree::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The whole number, where this is one.
    #[must_use]
    pub const fn as_int(&self) -> Option<i64> {
        match self.value {
            Tree::Int(value) => Some(value),
            _ => None,
        }
    }

    /// The truth value, where this is one.
    #[must_use]
    pub const fn as_bool(&self) -> Option<bool> {
        match self.value {
            Tree::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The items: of a list, or this very node where it is not one.
    #[must_use]
    pub fn items(&self) -> &[Self] {
        match &self.value {
            Tree::List(items) => items,
            _ => std::slice::from_ref(self),
        }
    }

    /// What the node is, in the words of an error message.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self.value {
            Tree::Null => "nothing",
            Tree::Bool(_) => "true or false",
            Tree::Int(_) => "a whole number",
            Tree::Float(_) => "a number",
            Tree::Str(_) => "text",
            Tree::List(_) => "a list",
            Tree::Map(_) => "a map",
        }
    }
}

/// The parser's message without its location suffix and excerpt: the place is printed separately.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or("not YAML").to_owned()
}

impl From<Spanned<Tree>> for Node {
    fn from(spanned: Spanned<Tree>) -> Self {
        let place = Place { line: spanned.referenced.line(), column: spanned.referenced.column() };
        Self { value: spanned.value, place }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "beyond i64 only the magnitude matters, for the range check"
        )]
        Ok(i64::try_from(value).map_or(Tree::Float(value as f64), Tree::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Str(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::Str(value))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(Self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Spanned<Tree>>()? {
            items.push(item.into());
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let value = access.next_value::<Spanned<Tree>>()?;
            let place = Place { line: key.referenced.line(), column: key.referenced.column() };
            entries.push((MapKey { name: key.value, place }, value.into()));
        }
        Ok(Tree::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_and_value_knows_its_place() {
        let node =
            Node::parse("models:\n  - path: a\nschemes: [int, {scheme: float, params: {bits: [3, 4]}}]\n")
                .unwrap();
        let schemes = node.get("schemes").unwrap();
        assert_eq!(schemes.place, Place { line: 3, column: 10 });
        let Tree::Map(entries) = &schemes.items()[1].value else { panic!("a map") };
        assert_eq!(entries[1].0.place, Place { line: 3, column: 32 });
        let bits = schemes.items()[1].get("params").unwrap().get("bits").unwrap();
        assert_eq!(bits.items().iter().map(Node::as_int).collect::<Vec<_>>(), [Some(3), Some(4)]);
    }

    #[test]
    fn refuses_duplicate_keys_with_their_line() {
        let (place, message) = Node::parse("name: a\nname: b\n").unwrap_err();
        assert_eq!(place.line, 2);
        assert!(message.contains("name"), "{message}");
    }

    #[test]
    fn refuses_text_that_is_not_yaml_with_its_line() {
        let (place, _) = Node::parse("models: [a\nschemes: b\n").unwrap_err();
        assert!(place.line >= 1);
    }

    #[test]
    fn bounds_alias_bombs() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, before) in ('b'..='m').zip('a'..) {
            text += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(", "));
        }
        assert!(Node::parse(&text).is_err());
    }
}
