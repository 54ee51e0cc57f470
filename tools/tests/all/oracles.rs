//! Independent readers agree with us, where they are right.

use crate::foreign::{Scratch, assert_same};
use deltachain::{
    base::GuestOffset,
    chain::{Chain, Opening},
    disk::Disk,
    format::Format,
    io::{Host, real::RealHost},
};
use std::{path::Path, sync::Arc};

fn ours(image: &Path) -> Vec<u8> {
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    let opening = Opening::reading().with_format(Some(Format::Qcow2));
    let chain = Chain::open(&host, image, &opening).unwrap();
    let mut bytes = vec![0xee; usize::try_from(chain.size()).unwrap()];
    chain.read(GuestOffset::new(0), &mut bytes).unwrap();
    bytes
}

#[test]
fn three_readers_agree_on_an_image_that_stands_alone() {
    for options in
        ["cluster_size=4k", "cluster_size=64k", "cluster_size=2M", "compat=0.10", "refcount_bits=1"]
    {
        let folder = Scratch::new();
        folder.qemu_img(&format!("create -q -f qcow2 -o {options} image 5M"));
        let writes = ["write -q -P 1 3k 900k", "write -q -P 2 4M 70k", "write -q -P 3 77k 1k"];
        folder.qemu_io("qcow2", "image", &writes);
        let image = folder.file("image");
        let bytes = ours(&image);
        assert_same(&bytes, &dchain_oracles::imago(&image).unwrap(), &format!("imago, {options}"));
        assert_same(&bytes, &dchain_oracles::qcow2_rs(&image).unwrap(), &format!("qcow2-rs, {options}"));
    }
}

#[test]
fn imago_agrees_on_chains_short_layers_and_compressed_clusters() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f raw base 1M");
    folder.qemu_io("raw", "base", &["write -q -P 7 0 1M"]);
    folder.qemu_img("create -q -f qcow2 -o cluster_size=64k -F raw -b base middle 2M");
    folder.qemu_io(
        "qcow2",
        "middle",
        &["write -q -P 8 5k 3k", "write -q -z 100k 64k", "write -q -P 9 1200k 30k"],
    );
    folder.qemu_img("create -q -f qcow2 -o cluster_size=16k -F qcow2 -b middle top 3M");
    folder.qemu_io("qcow2", "top", &["write -q -c -P 10 256k 128k", "write -q -P 11 2900k 10k"]);
    let image = folder.file("top");
    let bytes = ours(&image);
    assert_same(&bytes, &folder.flat("qcow2", "top"), "qemu");
    assert_same(&bytes, &dchain_oracles::imago(&image).unwrap(), "imago");
}
