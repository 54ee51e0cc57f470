//! The answer on stdout: for a person or for a program, and nothing else.

use crate::failure::Failure;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::{self, BufWriter, ErrorKind, StdoutLock, Write},
    os::fd::{AsFd, BorrowedFd},
};

/// The version of every JSON answer: it changes when a key goes or changes its meaning, not when one is added.
pub const SCHEMA: u32 = 1;

/// For whom the answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For a person.
    #[default]
    Human,
    /// For a program: one JSON value, with `"schema": 1`.
    Json,
    /// For Graphviz (`tree` alone).
    Dot,
    /// A picture (`tree` alone).
    Svg,
}

impl Output {
    /// Returns whether the answer is a drawing, which only some commands can give.
    pub const fn is_drawing(self) -> bool {
        matches!(self, Self::Dot | Self::Svg)
    }
}

/// Returns an answer's JSON: keys with hyphens, as qemu-img writes them, and the version of its shape.
pub fn versioned<T: Serialize>(answer: &T) -> io::Result<Value> {
    let mut value = hyphenated(serde_json::to_value(answer)?);
    if let Value::Object(fields) = &mut value {
        fields.insert("schema".to_owned(), SCHEMA.into());
    }
    Ok(value)
}

/// Writes the keys of Rust structs as keys of JSON.
fn hyphenated(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.into_iter().map(|(key, value)| (key.replace('_', "-"), hyphenated(value))).collect()
        }
        Value::Array(values) => values.into_iter().map(hyphenated).collect(),
        plain => plain,
    }
}

/// Where answers go.
#[derive(Debug)]
pub struct Answer {
    format: Output,
    is_quiet: bool,
}

impl Answer {
    /// Answers in `format`; to a person nothing at all if `is_quiet`.
    pub const fn new(format: Output, is_quiet: bool) -> Self {
        Self { format, is_quiet }
    }

    /// Returns for whom the answer is.
    pub const fn output(&self) -> Output {
        self.format
    }

    /// Returns whether a program reads the answer.
    pub fn is_json(&self) -> bool {
        self.format == Output::Json
    }

    /// Returns whether a person wants nothing but errors.
    pub fn is_silent(&self) -> bool {
        self.is_quiet || self.is_json()
    }

    /// Prints `answer` as JSON, or what `human` writes.
    pub fn print<T: Serialize>(
        &self,
        answer: &T,
        human: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        to_stdout(|out| match self.format {
            Output::Json => {
                serde_json::to_writer_pretty(&mut *out, &versioned(answer)?)?;
                writeln!(out)
            }
            Output::Human if self.is_quiet => Ok(()),
            Output::Human => human(&mut Lines(out)),
            Output::Dot | Output::Svg => human(out),
        })
    }

    /// Prints a list: as JSON an array whose entries each carry the version.
    pub fn print_list<T: Serialize>(
        &self,
        answers: &[T],
        human: impl FnOnce(&[T], &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        to_stdout(|out| match self.format {
            Output::Json => {
                let list = answers.iter().map(versioned).collect::<io::Result<Vec<_>>>()?;
                serde_json::to_writer_pretty(&mut *out, &list)?;
                writeln!(out)
            }
            Output::Human if self.is_quiet => Ok(()),
            Output::Human => human(answers, &mut Lines(out)),
            Output::Dot | Output::Svg => human(answers, out),
        })
    }
}

/// Writes lines for a person: what one call writes is one line at most, whatever stands in the names that are in it.
pub struct Lines<'a>(pub &'a mut dyn Write);

impl Write for Lines<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn write_fmt(&mut self, line: fmt::Arguments<'_>) -> io::Result<()> {
        let line = line.to_string();
        let (text, end) = line.strip_suffix('\n').map_or((line.as_str(), ""), |text| (text, "\n"));
        self.0.write_all(printable(text).as_bytes())?;
        self.0.write_all(end.as_bytes())
    }
}

/// Returns text as it can be shown on a terminal: names come from inside images and from folders, and a terminal acts on
/// control characters; some others turn the order of what follows around. Those are shown as `\n` and `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if acts(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

/// Hands out stdout, buffered. A reader that went away is no failure: it has what it wanted.
pub fn to_stdout(
    print: impl FnOnce(&mut BufWriter<StdoutLock<'static>>) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let Err(error) = print(&mut out).and_then(|()| out.flush()) else { return Ok(()) };
    // What is still in the buffer has no reader.
    drop(out.into_parts());
    if error.kind() == ErrorKind::BrokenPipe { Ok(()) } else { Err(error.into()) }
}

/// Returns stdin and stdout as files, for what is neither text nor in lines.
pub fn wires() -> io::Result<(File, File)> {
    let own = |fd: BorrowedFd<'_>| Ok::<_, io::Error>(File::from(fd.try_clone_to_owned()?));
    Ok((own(io::stdin().as_fd())?, own(io::stdout().as_fd())?))
}

/// Prints something that is no answer on stderr; a stderr that is gone is no failure.
pub fn note(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}
