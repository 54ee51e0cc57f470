//! Who may ask: what is let through to the routes from the control socket and from the loopback port.
//!
//! What stays true: over TCP nothing is answered without the token but a refusal (whose page asks for the token). A
//! browser sends the token with no request by itself, since it is no cookie: so another site's page cannot have
//! anything done, and nothing is told to it either (no CORS). A name that somebody else made resolve to this machine
//! is no name of ours (`Host`), on the control socket as well: it may be forwarded to a port.

use super::{answer::Refusal, narrow::Known, page};
use axum::{
    body,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{hint, sync::Arc};

/// No refusal in words is longer.
const TEXT_BYTES_MAX: usize = 4096;

/// What stands between a place where clients come in and the routes.
#[derive(Clone, Default)]
pub struct Gate {
    /// On a port: which, and the token.
    web: Option<(u16, Arc<str>)>,
}

impl Gate {
    /// Lets those in who know the token.
    pub fn web(port: u16, token: &str) -> Self {
        Self { web: Some((port, token.into())) }
    }

    /// Refuses what does not come from this machine's user.
    fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let forbidden = |what| Refusal::denied(StatusCode::FORBIDDEN, what);
        let text = |name| match headers.get(name).map(HeaderValue::to_str) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(forbidden("a header is no text")),
        };
        let host = text(header::HOST)?;
        if headers.get_all(header::HOST).iter().count() > 1 || !self.is_own(host) {
            return Err(forbidden("the Host header is not a name of this machine's loopback"));
        }
        let own = || host.map(|host| format!("http://{host}"));
        if text(header::ORIGIN)?.is_some_and(|origin| own().is_none_or(|own| own != origin)) {
            return Err(forbidden("another site's page asks"));
        }
        let Some((_, token)) = &self.web else { return Ok(()) };
        let said = text(header::AUTHORIZATION)?.and_then(|said| said.strip_prefix("Bearer "));
        if said.is_some_and(|said| is_same(said.as_bytes(), token.as_bytes())) {
            Ok(())
        } else {
            Err(Refusal::denied(StatusCode::UNAUTHORIZED, "the token is wanted: Authorization: Bearer TOKEN"))
        }
    }

    fn is_own(&self, host: Option<&str>) -> bool {
        let Some(host) = host else {
            // Who speaks HTTP/1.0 to a unix socket has no name for it.
            return self.web.is_none();
        };
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port),
            _ => (host, "80"),
        };
        let is_local = ["localhost", "127.0.0.1", "[::1]"].contains(&name);
        is_local && self.web.as_ref().is_none_or(|(own, _)| port.parse() == Ok(*own))
    }
}

/// Whether both are the same, in a time that does not tell where they differ.
fn is_same(said: &[u8], token: &[u8]) -> bool {
    let differs = said.iter().zip(token).fold(0, |any, (a, b)| hint::black_box(any | (a ^ b)));
    said.len() == token.len() && differs == 0
}

/// Refusals of the parts that we did not write are JSON, too.
async fn worded(answer: Response) -> Response {
    let kind = answer.headers().get(header::CONTENT_TYPE);
    let is_text = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !answer.status().is_client_error() || !is_text {
        return answer;
    }
    let status = answer.status();
    let text = body::to_bytes(answer.into_body(), TEXT_BYTES_MAX).await.unwrap_or_default();
    Refusal::worded(status, &String::from_utf8_lossy(&text)).into_response()
}

/// Lets a request through, or answers it.
pub async fn check(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let is_page = request.uri().path() == "/";
    let checked = match request.uri().authority() {
        // Asked as a proxy is asked: not what a browser does here.
        Some(_) => Err(Refusal::denied(StatusCode::FORBIDDEN, "this is no proxy")),
        None => gate.check(request.headers()),
    };
    let mut answer = match checked {
        Ok(()) => {
            if let Some(ConnectInfo(known)) = request.extensions().get::<ConnectInfo<Known>>() {
                known.welcome();
            }
            worded(next.run(request).await).await
        }
        Err(refusal) if is_page && refusal.is_unauthorized() => {
            (StatusCode::UNAUTHORIZED, page::show().await).into_response()
        }
        Err(refusal) => refusal.into_response(),
    };
    let all = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in all {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(gate: &Gate, headers: &[(&'static str, &'static str)]) -> u16 {
        let pairs =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        let checked = gate.check(&pairs.collect::<HeaderMap>());
        checked.map_or_else(|refusal| refusal.into_response().status().as_u16(), |()| 200)
    }

    #[test]
    fn over_tcp_the_token_is_wanted_and_the_name_of_the_machine() {
        let gate = Gate::web(8080, "secret");
        let right = ("authorization", "Bearer secret");
        for host in ["127.0.0.1:8080", "localhost:8080", "[::1]:8080"] {
            assert_eq!(status(&gate, &[("host", host), right]), 200);
            assert_eq!(status(&gate, &[("host", host)]), 401);
        }
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer ", "Bearer Secret", "Basic secret", "secret"]
        {
            assert_eq!(
                status(&gate, &[("host", "localhost:8080"), ("authorization", wrong)]),
                401,
                "{wrong}"
            );
        }
        for host in
            ["evil.example:8080", "localhost", "localhost:80", "127.0.0.1.evil.example:8080", "[::1]", ""]
        {
            assert_eq!(status(&gate, &[("host", host), right]), 403, "{host}");
        }
        assert_eq!(status(&gate, &[right]), 403);
        assert_eq!(status(&gate, &[("host", "localhost:8080"), right, ("cookie", "token=secret")]), 200);
        let from = |origin| status(&gate, &[("host", "localhost:8080"), right, ("origin", origin)]);
        assert_eq!(
            (from("http://localhost:8080"), from("http://evil.example"), from("null")),
            (200, 403, 403)
        );
    }

    #[test]
    fn the_control_socket_wants_no_token_and_no_other_sites_pages() {
        let gate = Gate::default();
        assert_eq!(status(&gate, &[]), 200);
        assert_eq!(status(&gate, &[("host", "localhost")]), 200);
        assert_eq!(status(&gate, &[("host", "localhost:1234")]), 200);
        assert_eq!(status(&gate, &[("host", "evil.example")]), 403);
        assert_eq!(status(&gate, &[("host", "localhost"), ("origin", "http://evil.example")]), 403);
        assert_eq!(status(&gate, &[("origin", "http://localhost")]), 403);
    }
}
