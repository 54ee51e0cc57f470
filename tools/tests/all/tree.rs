//! `dchain tree` as pictures: sound XML, whatever the names are; the same each time.

use crate::{
    dchain::{dchain, done},
    foreign::Scratch,
};
use std::fs;

/// Two hierarchies, one with a name that would break out of a picture, one whose parent is not here.
fn scene() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base.qcow2 64M");
    folder.qemu_io("qcow2", "base.qcow2", &["write -q -P 1 0 20M"]);
    for (parent, child) in
        [("base.qcow2", "monday.qcow2"), ("base.qcow2", "a<b>&\"'.qcow2"), ("monday.qcow2", "tuesday.qcow2")]
    {
        folder.try_run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", parent, child]);
    }
    folder.qemu_img("create -q -f qcow2 -u -F qcow2 -b gone/golden.qcow2 orphan.qcow2 64M");
    fs::write(folder.file("broken.qcow2"), b"QFI\xfb\0\0\0\x09 no header").unwrap();
    folder
}

#[test]
fn a_picture_is_sound_xml_with_every_image_in_it() {
    let folder = scene();
    let picture = done(&folder.path(), &["tree", "--output", "svg", "."]).out;
    assert_eq!(picture, done(&folder.path(), &["tree", "--output", "svg", "."]).out);
    for name in ["base.qcow2", "monday.qcow2", "tuesday.qcow2", "orphan.qcow2", "gone/golden.qcow2"] {
        assert!(picture.contains(&format!(">{name}</text>")), "{name}: {picture}");
    }
    assert!(picture.contains("a&lt;b&gt;&amp;&quot;&#39;.qcow2</text>"), "{picture}");
    assert!(picture.contains("unreadable: ") && picture.contains("broken.qcow2"), "{picture}");
    assert_eq!(picture.matches(r#"class="link""#).count(), 4);
    assert_eq!(picture.matches(">head</text>").count(), 3);
    assert_sound(&picture);
}

/// Tags close in the order in which they open, attributes are quoted, and text has no bare `<` or `&`.
fn assert_sound(xml: &str) {
    let mut open = Vec::new();
    for part in xml.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("no end: <{part}"));
        for entity in text.split('&').skip(1).chain(tag.split('&').skip(1)) {
            assert!(
                ["amp;", "lt;", "gt;", "quot;", "#39;"].iter().any(|e| entity.starts_with(e)),
                "&{entity}"
            );
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "</{name}>"),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split(' ').next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn graphviz_gets_one_graph_and_other_commands_draw_nothing() {
    let folder = scene();
    let dot = done(&folder.path(), &["tree", "--output", "dot", "."]).out;
    assert!(dot.starts_with("digraph layers {\n") && dot.ends_with("}\n"), "{dot}");
    assert_eq!(dot.matches(" -> ").count(), 3);
    let refused = dchain(&folder.path(), &["info", "--output", "svg", "base.qcow2"]);
    assert_eq!((refused.code, refused.out.as_str()), (Some(64), ""));
}

#[test]
fn a_chain_of_more_layers_than_anybody_opens_is_shown_in_parts() {
    const LAYERS: usize = 20_000;
    let folder = Scratch::in_memory();
    folder.qemu_img("create -q -f qcow2 -o cluster_size=512 -F qcow2 -u -b NAME000000 image 1M");
    let image = fs::read(folder.file("image")).unwrap();
    let at = image.windows(10).position(|bytes| bytes == b"NAME000000").unwrap();
    for layer in 0..LAYERS {
        let mut image = image.clone();
        image[at..at + 10].copy_from_slice(format!("NAME{:06}", layer + 1).as_bytes());
        fs::write(folder.file(&format!("NAME{layer:06}")), image).unwrap();
    }
    let shown = done(&folder.path(), &["tree", "."]).out;
    assert_eq!(shown.matches("1 MiB").count(), LAYERS + 1);
}
