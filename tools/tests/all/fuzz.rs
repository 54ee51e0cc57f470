//! Malformed inputs: none panics, reads on for ever, takes much memory or is refused without a word.

use dchain_lab::fuzz::{self, Recipe, Subject};
use std::{fs, path::Path};

fn testdata() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata"))
}

#[test]
fn thousands_of_damaged_inputs_are_read_or_refused() {
    fuzz::listen();
    let subjects = Subject::all(testdata()).unwrap();
    assert!(subjects.len() > 20, "the golden images are there");
    let tally = fuzz::search(&subjects, 1, 3000);
    println!("{tally}");
    let said: Vec<String> = tally.wrong.iter().map(|(recipe, wrong)| format!("{wrong}\n{recipe}")).collect();
    assert!(said.is_empty(), "{}", said.join("\n"));
    // A fuzzer that never gets past the header says nothing about what lies behind it.
    assert!(tally.past_header * 10 > tally.images, "{tally}");
    assert!(tally.written * 10 > tally.images && tally.mended > 100, "{tally}");
}

#[test]
fn inputs_that_once_went_wrong_stay_mended() {
    fuzz::listen();
    let subjects = Subject::all(testdata()).unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(testdata().join("fuzz")).unwrap() {
        let path = entry.unwrap().path();
        let recipe = Recipe::parse(&fs::read_to_string(&path).unwrap()).unwrap();
        let fed = fuzz::feed(&subjects, &recipe);
        assert!(fed.is_ok(), "{}: {fed:?}", path.display());
        seen += 1;
    }
    assert!(seen > 0);
}
