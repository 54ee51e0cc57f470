//! What `info` shows of a VMDK disk: qemu's keys, and where its extents are.

use super::{
    descriptor::Descriptor,
    layout::Coding,
    tables::{Body, Extent, Tables},
};
use crate::format::Details;
use serde_json::{Value, json};

/// Extents that are listed; of more, only how many there are is said.
const EXTENTS_MAX: usize = 64;

/// Returns what the descriptor and the extents say.
pub(super) fn read(descriptor: Option<&Descriptor>, tables: &Tables) -> Details {
    let mut specific: Vec<(String, Value)> = Vec::new();
    let mut say = |key: &str, value: Value| specific.push((key.to_owned(), value));
    if let Some(descriptor) = descriptor {
        say("cid", json!(descriptor.cid().ok()));
        say("parent-cid", json!(descriptor.parent_cid().ok()));
        say("create-type", json!(descriptor.shown("createType")));
        for key in ["adapterType", "virtualHWVersion"] {
            if let Some(value) = descriptor.shown(&format!("ddb.{key}")) {
                say(if key == "adapterType" { "adapter-type" } else { "hwversion" }, value.into());
            }
        }
    }
    let sparse = || tables.extents.iter().filter_map(Extent::grains);
    let marks_zeros = sparse().all(|grains| grains.layout.has_zeros()) && sparse().next().is_some();
    say("zeroed-grain", marks_zeros.into());
    let shown = |extent: &Extent| {
        let size = extent.guest.bytes;
        let name = |at| tables.space.part(at).map(|(target, _)| target.file.path().display().to_string());
        match &extent.body {
            Body::Zero => json!({ "format": "ZERO", "virtual-size": size }),
            Body::Flat(at) => json!({ "filename": name(*at).ok(), "format": "FLAT", "virtual-size": size }),
            Body::Grains(grains) => json!({
                "filename": name(grains.base).ok(),
                "format": kind(grains.layout.coding),
                "virtual-size": size,
                "cluster-size": grains.layout.grain,
                "compressed": grains.layout.is_packed(),
            }),
        }
    };
    let extents: Vec<Value> = tables.extents.iter().take(EXTENTS_MAX).map(shown).collect();
    say("extents", extents.into());
    if tables.extents.len() > EXTENTS_MAX {
        say("extent-count", tables.extents.len().into());
    }
    Details {
        cluster_bytes: sparse().map(|grains| grains.layout.grain).min(),
        marks_zeros,
        is_dirty: sparse().any(|grains| grains.layout.is_unclean),
        specific,
        ..Details::default()
    }
}

const fn kind(coding: Coding) -> &'static str {
    match coding {
        Coding::Hosted { .. } | Coding::Packed { .. } => "SPARSE",
        Coding::Cowd => "VMFSSPARSE",
        Coding::Se { .. } => "SESPARSE",
    }
}
