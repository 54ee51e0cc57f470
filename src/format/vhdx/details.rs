//! What `info` shows of a VHDX image.

use super::image::VhdxImage;
use crate::format::Details;
use serde_json::{Value, json};

impl VhdxImage {
    /// Returns the image's details: kind, sizes, GUIDs, and what names its parent.
    pub(super) fn read_details(&self) -> Details {
        let header = self.session.lock().header;
        let state = self.state.read();
        let (geometry, metadata) = (state.geometry, &state.metadata);
        let subformat = match (metadata.has_parent(), geometry.is_fixed) {
            (true, _) => "differencing",
            (false, true) => "fixed",
            (false, false) => "dynamic",
        };
        let mut specific: Vec<(String, Value)> = Vec::new();
        let mut say = |key: &str, value: Value| specific.push((key.to_owned(), value));
        say("subformat", subformat.into());
        say("block-size", geometry.block_bytes.into());
        say("log-size", header.log.bytes.into());
        say("logical-sector-size", geometry.sector_bytes.into());
        say("physical-sector-size", geometry.physical_bytes.into());
        say("data-write-guid", header.data_guid.to_string().into());
        if let Some(locator) = &metadata.locator {
            let pairs = locator.pairs().iter().map(|(key, value)| (key.clone(), json!(value)));
            say("parent-locator", Value::Object(pairs.collect()));
        }
        Details { marks_zeros: true, is_dirty: !header.log_guid.is_nil(), specific, ..Details::default() }
    }
}
