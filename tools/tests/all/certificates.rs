//! Certificates for tests of TLS, made by OpenSSL, in folders as qemu and libnbd want them.

use super::foreign::Scratch;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{fs, sync::Arc};

/// Makes a key and what it asks to be signed, or is signed by itself.
const REQUEST: &str = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

/// Makes `server` (for the daemon), `client`, `nobody` (who has no certificate), `stranger` (whose certificate another
/// authority signed) and `fooled` (who takes that authority's word).
pub(crate) fn make(folder: &Scratch) {
    for name in ["server", "client", "nobody", "stranger", "fooled"] {
        fs::create_dir_all(folder.file(name)).unwrap();
    }
    for authority in ["our", "other"] {
        let files = format!("-keyout {authority}-key.pem -out {authority}-cert.pem");
        folder.run("openssl", &format!("{REQUEST} -x509 -days 2 -subj /CN={authority} {files}"));
    }
    sign(folder, "our", "server/server");
    sign(folder, "our", "client/client");
    sign(folder, "other", "stranger/client");
    for (authority, name) in
        [("our", "server"), ("our", "client"), ("our", "nobody"), ("our", "stranger"), ("other", "fooled")]
    {
        let to = folder.file(&format!("{name}/ca-cert.pem"));
        fs::copy(folder.file(&format!("{authority}-cert.pem")), to).unwrap();
    }
}

/// Makes a key `name-key.pem` and a certificate `name-cert.pem` that `authority` signed.
fn sign(folder: &Scratch, authority: &str, name: &str) {
    let subject = name.replace('/', "-");
    folder.run("openssl", &format!("{REQUEST} -subj /CN={subject} -keyout {name}-key.pem -out asked.csr"));
    let usage = if name.ends_with("server") { "serverAuth" } else { "clientAuth" };
    let says = format!(
        "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage={usage}\n\
         subjectAltName=DNS:localhost,IP:127.0.0.1\n"
    );
    fs::write(folder.file("says"), says).unwrap();
    let by = format!("-CA {authority}-cert.pem -CAkey {authority}-key.pem -CAcreateserial");
    folder
        .run("openssl", &format!("x509 -req -in asked.csr {by} -days 2 -extfile says -out {name}-cert.pem"));
}

/// Has our authority take the client's certificate back.
pub(crate) fn revoke(folder: &Scratch) {
    fs::write(folder.file("index"), "").unwrap();
    fs::write(folder.file("number"), "01\n").unwrap();
    let settings = "[ca]\ndefault_ca = our\n[our]\ndatabase = index\ncrlnumber = number\ndefault_md = sha256\n\
                    default_crl_days = 2\n";
    fs::write(folder.file("settings"), settings).unwrap();
    let ca = "ca -config settings -cert our-cert.pem -keyfile our-key.pem";
    folder.run("openssl", &format!("{ca} -revoke client/client-cert.pem"));
    folder.run("openssl", &format!("{ca} -gencrl -out server/ca-crl.pem"));
}

/// What the client in `client` believes and proves.
pub(crate) fn client(folder: &Scratch) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.file("client/ca-cert.pem")).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_file(folder.file("client/client-cert.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.file("client/client-key.pem")).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    Arc::new(builder.with_client_auth_cert(chain, key).unwrap())
}
