//! QEMU's monitor, as far as the bench needs it.

use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
};

/// A connection to it.
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects, and ends the greeting.
    pub(crate) fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|e| format!("QMP: {e}"))?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.ask("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Gives a command; returns its answer.
    pub(crate) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let line = json!({"execute": command, "arguments": arguments}).to_string();
        writeln!(self.reader.get_mut(), "{line}").map_err(|e| format!("QMP: {e}"))?;
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).map_err(|e| format!("QMP: {e}"))?;
            let said: Value = serde_json::from_str(&line).map_err(|e| format!("QMP: {e}"))?;
            match (said.get("return"), said.get("error")) {
                (Some(answer), _) => return Ok(answer.clone()),
                (_, Some(error)) => return Err(format!("QMP: {command}: {error}")),
                // The greeting, and events.
                _ => {}
            }
        }
    }
}
