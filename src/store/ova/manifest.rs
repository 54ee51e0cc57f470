//! The manifest of an OVF package (DSP0243 2.1.1, section 5.1): what the bytes of its files are, by digests.
//!
//! A line for each file: `SHA256(disk.vmdk)= 1f2e...`. It tells of accidents, not of intent: whoever changes a file can
//! change the manifest as well, unless a certificate signs it, which is not looked at here.

use crate::base::{Error, Result, name};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use std::{collections::BTreeMap, fmt, path::Path};

/// How a digest is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Algorithm {
    /// FIPS 180-4, 20 bytes: OVF 1.x. An accident shows, an attack need not.
    Sha1,
    /// FIPS 180-4, 32 bytes: OVF 2.x.
    Sha256,
    /// FIPS 180-4, 64 bytes: OVF 2.x.
    Sha512,
}

impl Algorithm {
    const ALL: [Self; 3] = [Self::Sha1, Self::Sha256, Self::Sha512];

    /// Returns its name in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
        }
    }

    const fn digest_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Begins a digest.
    pub fn hasher(self) -> Hasher {
        match self {
            Self::Sha1 => Hasher::Sha1(Sha1::new()),
            Self::Sha256 => Hasher::Sha256(Sha256::new()),
            Self::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }
}

/// A digest in the making.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// Of [`Algorithm::Sha1`].
    Sha1(Sha1),
    /// Of [`Algorithm::Sha256`].
    Sha256(Sha256),
    /// Of [`Algorithm::Sha512`].
    Sha512(Sha512),
}

impl Hasher {
    /// Takes in what follows.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Returns the digest of all that was taken in.
    pub fn finish(self) -> ShownDigest {
        ShownDigest(match self {
            Self::Sha1(hasher) => hasher.finalize().to_vec(),
            Self::Sha256(hasher) => hasher.finalize().to_vec(),
            Self::Sha512(hasher) => hasher.finalize().to_vec(),
        })
    }
}

/// A digest, shown in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownDigest(Vec<u8>);

impl fmt::Display for ShownDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a manifest says of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// How the digest is made.
    pub algorithm: Algorithm,
    digest: ShownDigest,
}

impl Promise {
    /// Refuses as `Corrupt` bytes whose digest is another one.
    pub fn hold(&self, found: &ShownDigest) -> Result<()> {
        if *found == self.digest {
            return Ok(());
        }
        let (name, promised) = (self.algorithm.name(), &self.digest);
        Err(Error::corrupt(format!(
            "is not what the manifest promises: its {name} is {found}, not {promised}"
        )))
    }
}

/// What a manifest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    promises: BTreeMap<String, Promise>,
}

impl Manifest {
    /// Reads a manifest's text; errors name the line.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let text = str::from_utf8(bytes).map_err(|_| Error::corrupt("is not UTF-8"))?;
        let mut promises = BTreeMap::new();
        for (nth, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |what: &str| Error::corrupt(format!("line {}: {what}", nth + 1));
            let (name, promise) = promise(line).ok_or_else(|| wrong("is not ALGORITHM(NAME)= DIGEST"))?;
            let promise = promise.map_err(|what| wrong(&what))?;
            // As the archive's own names are taken.
            let name = name.trim_start_matches("./");
            if promises.insert(name.to_owned(), promise).is_some() {
                return Err(wrong("names a file for the second time"));
            }
        }
        Ok(Self { promises })
    }

    /// Returns what it says of a file.
    pub(super) fn promise(&self, name: &str) -> Option<&Promise> {
        // As in references, what is no letter may be written as its number.
        let is_meant =
            |said: &str| said.contains('%') && name::path(&format!("file:{said}")) == Path::new(name);
        let decoded = || self.promises.iter().find(|(said, _)| is_meant(said)).map(|(_, promise)| promise);
        self.promises.get(name).or_else(decoded)
    }

    /// Returns the algorithms that it uses.
    pub fn algorithms(&self) -> Vec<Algorithm> {
        let is_used = |algorithm: &Algorithm| self.promises.values().any(|said| said.algorithm == *algorithm);
        Algorithm::ALL.into_iter().filter(is_used).collect()
    }
}

/// Takes a line apart: a file's name, and its digest or what is wrong with that.
fn promise(line: &str) -> Option<(&str, std::result::Result<Promise, String>)> {
    // A name may have any of these signs in it, a digest none.
    let (left, digits) = line.rsplit_once('=')?;
    let (algorithm, name) = left.trim().strip_suffix(')')?.split_once('(')?;
    let (algorithm, digits) = (algorithm.trim(), digits.trim());
    let Some(known) = Algorithm::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(algorithm))
    else {
        return Some((name, Err("uses another algorithm than SHA1, SHA256 and SHA512".to_owned())));
    };
    let wrong = || format!("has no {} of {} digits", known.name(), known.digest_bytes() * 2);
    let found = bytes(digits).filter(|found| found.len() == known.digest_bytes()).ok_or_else(wrong);
    Some((name, found.map(|found| Promise { algorithm: known, digest: ShownDigest(found) })))
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(algorithm: Algorithm, bytes: &[u8]) -> ShownDigest {
        let mut hasher = algorithm.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    #[test]
    fn each_way_to_write_a_line_is_read() {
        let abc = Algorithm::ALL.map(|algorithm| digest(algorithm, b"abc"));
        // FIPS 180-4's own examples.
        assert_eq!(abc[0].to_string(), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert!(
            abc[1].to_string().starts_with("ba7816bf8f01cfea")
                && abc[2].to_string().starts_with("ddaf35a193617aba")
        );
        let [first, second, third] = abc.clone();
        let text = format!("SHA1(a.ovf)= {first}\r\nSHA256 (b (1)=.vmdk) = {second}\n\nsha512(c)={third}");
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        for (name, digest) in ["a.ovf", "b (1)=.vmdk", "c"].into_iter().zip(&abc) {
            manifest.promise(name).unwrap().hold(digest).unwrap();
        }
        assert_eq!((manifest.promise("d"), manifest.algorithms().len()), (None, 3));
        let text = format!("SHA1(./a%20b.ovf)= {first}\nSHA1(d%zz)= {first}");
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        for name in ["a b.ovf", "a%20b.ovf", "d%zz"] {
            manifest.promise(name).unwrap().hold(&first).unwrap();
        }
        assert_eq!(manifest.promise("./a b.ovf"), None);
        let manifest = Manifest::parse(format!("sha512(c)={third}").as_bytes()).unwrap();
        let error = manifest.promise("c").unwrap().hold(&first).unwrap_err().to_string();
        assert!(error.starts_with("is not what the manifest promises: its SHA512 is a999"), "{error}");
    }

    #[test]
    fn a_line_that_promises_nothing_is_refused_by_its_number() {
        let sound = format!("SHA1(a)= {}\n", "0".repeat(40));
        for (line, what) in [
            ("nonsense", "is not ALGORITHM(NAME)= DIGEST"),
            ("MD5(b)= 00", "another algorithm"),
            ("SHA1(b)= 00", "has no SHA1 of 40 digits"),
            (&format!("SHA1(b)= {}", "+0".repeat(20)), "has no SHA1 of 40 digits"),
            (sound.trim(), "names a file for the second time"),
            (&sound.replace("(a)", "(./a)"), "names a file for the second time"),
        ] {
            let error = Manifest::parse(format!("{sound}{line}").as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("line 2: ") && error.contains(what), "{error}");
        }
        assert!(Manifest::parse(b"\xff").is_err());
    }
}
