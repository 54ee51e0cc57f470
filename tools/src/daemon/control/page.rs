//! The web page: one file, which asks for the rest by the routes that others use, too.

use axum::{
    http::{HeaderName, header},
    response::{IntoResponse, Response},
};
use deltachain::base::seed;

const PAGE: &str = include_str!("page.html");

/// Answers with the page. Nothing of it comes from disks: its script puts their names in as text.
pub async fn show() -> Response {
    let nonce = format!("{:032x}", seed::fresh());
    // Nothing but what stands in the page itself runs or is shown, and it talks to nobody else.
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let page = PAGE.replace("NONCE", &nonce);
    let same_origin = "same-origin".to_owned();
    let headers: [(HeaderName, String); 4] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
        (HeaderName::from_static("cross-origin-opener-policy"), same_origin.clone()),
        (HeaderName::from_static("cross-origin-resource-policy"), same_origin),
    ];
    (headers, page).into_response()
}
