//! Agreement with other people's programs on real files. Skipped, with a line that says so, without ../shared.
#![expect(clippy::print_stdout, reason = "tests say what they measured and what they skipped")]

mod common;
#[path = "common/reference.rs"]
mod reference;

use common::{load_folder, load_gguf, shared};
use reference::{difference, in_every_way, reference};

#[test]
fn logits_agree_with_transformers() {
    let Some(folder) = shared("reference/hf") else { return };
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.is_dir());
    names.sort();
    for folder in names {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let (ids, expected) = reference(&folder);
        let gguf = folder.join("expected-f32.gguf");
        let mut forms = vec![("the checkpoint", load_folder(&folder, None).0)];
        if gguf.exists() {
            forms.push(("the converter's GGUF", load_gguf(&gguf).0));
        }
        for (form, model) in forms {
            let difference = difference(&in_every_way(&model, &ids), &expected);
            println!("{name} from {form}: {difference:.1e} of the logits' deviation");
            assert!(difference < 1e-4, "{name} from {form}: {difference}");
        }
    }
}
