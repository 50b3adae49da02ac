//! A plugin that panics in the function that its parameter `in` names: the SDK must turn each panic into an error with
//! the panic's message, and the process must live on. `none` makes it a plain scheme (8-bit codes, one f32 scale a row).

use kbit_plugin::{
    Aux, DefaultValue, Error, Host, Param, ParamKind, Params, Part, PartType, Plan, Scheme, SchemeInfo,
    Shape, Slab, SlabMut, export_plugin,
};
use std::ops::Range;

const PARAMS: &[Param] = &[Param {
    key: "in",
    doc: "The function that panics",
    unit: "",
    kind: ParamKind::Choice(&[
        "none",
        "open",
        "close",
        "plan",
        "begin",
        "observe",
        "prepare",
        "encode",
        "end",
        "open_tensor",
        "decode",
        "close_tensor",
    ]),
    default: DefaultValue::Str("encode"),
}];

/// The scheme.
pub struct Panics {
    place: Place,
}

/// Panics where `named` is the parameter's value; also when it is dropped, for `close`, `end` and `close_tensor`.
pub struct Place {
    named: String,
    dropped_in: &'static str,
}

impl Place {
    fn of(&self, function: &str, tensor: &str) {
        assert!(self.named != function, "deliberate panic in {function}, tensor {tensor}");
    }

    fn to_drop_in(&self, function: &'static str) -> Self {
        Self { named: self.named.clone(), dropped_in: function }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.of(self.dropped_in, "none");
        }
    }
}

impl Scheme for Panics {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.example.panics/1",
        title: "Bad: panics",
        doc: "Panics in the function that a parameter names, for tests.",
        citation: "",
        ggml_type: -1,
        params: PARAMS,
    };
    type Job = Place;
    type Tensor = Place;

    fn open(_: &Host<'_>, params: &Params) -> Result<Self, Error> {
        let scheme = Self { place: Place { named: params.str("in")?.to_owned(), dropped_in: "close" } };
        scheme.place.of("open", "none");
        Ok(scheme)
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        self.place.of("plan", shape.tensor);
        if shape.cols > u64::from(u32::MAX) {
            return Err(Error::unsupported(format!("{} columns are too many", shape.cols)));
        }
        Ok(Plan {
            parts: vec![Part::new("codes", PartType::I8, shape.cols), Part::new("scale", PartType::F32, 4)],
            stat_bytes: 1,
            ..Plan::default()
        })
    }

    fn begin(&self, shape: &Shape<'_>, _: Option<Slab<'_>>, _: &Aux<'_>) -> Result<Place, Error> {
        self.place.of("begin", shape.tensor);
        Ok(self.place.to_drop_in("end"))
    }

    fn observe(
        &self,
        _: &Place,
        _: Range<u64>,
        _: &Slab<'_>,
        stats: &mut [u8],
        _: &mut [u8],
    ) -> Result<(), Error> {
        self.place.of("observe", "being encoded");
        stats.fill(0);
        Ok(())
    }

    fn prepare(&self, _: &mut Place, _: &[u8], _: &mut [&mut [u8]]) -> Result<(), Error> {
        self.place.of("prepare", "being encoded");
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "codes are -127 to 127")]
    fn encode(
        &self,
        _: &Place,
        _: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        _: &mut [u8],
    ) -> Result<(), Error> {
        self.place.of("encode", "being encoded");
        let [codes, scales] = parts else { return Err(Error::internal("two parts")) };
        for i in 0..slab.len() {
            let row = slab.row(i);
            let largest = row.iter().fold(0f32, |largest, w| largest.max(w.abs()));
            if !row.iter().all(|w| w.is_finite()) {
                return Err(Error::numeric("a weight is not finite"));
            }
            let scale = largest / 127.0;
            scales[4 * i..4 * i + 4].copy_from_slice(&scale.to_le_bytes());
            for (code, w) in codes[i * row.len()..(i + 1) * row.len()].iter_mut().zip(row) {
                let steps = if scale > 0.0 { w / scale } else { 0.0 };
                *code = (steps.round_ties_even() as i8).max(-127).to_le_bytes()[0];
            }
        }
        Ok(())
    }

    fn open_tensor(&self, shape: &Shape<'_>, _: &[&[u8]]) -> Result<Place, Error> {
        self.place.of("open_tensor", shape.tensor);
        Ok(self.place.to_drop_in("close_tensor"))
    }

    fn decode(
        &self,
        _: &Place,
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        _: &mut [u8],
    ) -> Result<(), Error> {
        self.place.of("decode", shape.tensor);
        let cols = out.cols();
        for (i, row) in rows.enumerate() {
            let row = usize::try_from(row).map_err(|_| Error::internal("a row past memory"))?;
            let scale = f32::from_le_bytes(parts[1].as_chunks::<4>().0[row]);
            for (w, code) in out.row_mut(i).iter_mut().zip(&parts[0][row * cols..]) {
                *w = f32::from(i8::from_le_bytes([*code])) * scale;
            }
        }
        Ok(())
    }
}

export_plugin! {
    id: "org.example.panics",
    vendor: "kbit's tests",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [Panics],
}
