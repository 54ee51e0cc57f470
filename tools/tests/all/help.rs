//! Help texts: what `--help` prints is what is in `testdata/help`. `DCHAIN_UPDATE_HELP=1` writes it there.

use super::dchain::done;
use std::{env, fs, path::Path};

#[test]
fn help_is_what_the_snapshots_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let snapshots = root.join("../testdata/help");
    let mut commands = vec!["dchain".to_owned()];
    for entry in fs::read_dir(root.join("src/command")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        commands.extend(name.strip_suffix(".rs").filter(|n| *n != "mod").map(|n| n.replace('_', "-")));
    }
    assert!(commands.len() > 10);
    for name in commands {
        let arguments = if name == "dchain" { vec!["--help"] } else { vec![name.as_str(), "--help"] };
        let shown = done(root, &arguments).out;
        let file = snapshots.join(format!("{name}.txt"));
        if env::var_os("DCHAIN_UPDATE_HELP").is_some() {
            fs::write(&file, &shown).unwrap();
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(shown, expected, "{name}: DCHAIN_UPDATE_HELP=1 writes the new text");
    }
}
