//! Answers and refusals, as JSON.

use super::kind_name;
use crate::{failure::Failure, output::versioned};
use axum::{
    Json,
    body::Bytes,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use deltachain::{
    base::{Error, ErrorKind},
    service::Service,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::sync::Arc;

/// A request that is refused.
pub struct Refusal {
    status: StatusCode,
    kind: String,
    message: String,
    hint: Option<String>,
}

impl Refusal {
    /// Refuses a request that makes no sense.
    pub fn senseless(what: impl Into<String>) -> Self {
        Error::invalid(what).into()
    }

    /// Refuses what is not there, or not to be had in that way.
    pub fn unknown(status: StatusCode, message: &str) -> Self {
        let kind = kind_name(ErrorKind::NotFound);
        Self { status, kind, message: message.to_owned(), hint: Some("GET /v1/openapi.json".to_owned()) }
    }

    /// Refuses who may not ask.
    pub fn denied(status: StatusCode, message: &str) -> Self {
        Self { status, kind: kind_name(ErrorKind::Policy), message: message.to_owned(), hint: None }
    }

    /// Refuses a request that cannot be read.
    pub fn worded(status: StatusCode, message: &str) -> Self {
        Self { status, kind: kind_name(ErrorKind::Invalid), message: message.to_owned(), hint: None }
    }

    /// Whether it is for want of the token.
    pub fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (kind, has_file) = (error.kind(), error.file().is_some());
        let failure = Failure::from(error);
        // What helps with files does not help with names of disks and jobs.
        Self {
            status: status(kind),
            kind: kind_name(kind),
            message: failure.what,
            hint: failure.hint.filter(|_| has_file),
        }
    }
}

fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Policy => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Busy | ErrorKind::Exists | ErrorKind::Interrupted => StatusCode::CONFLICT,
        ErrorKind::Corrupt | ErrorKind::Unsupported => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, kind, message, hint } = self;
        (status, Json(json!({ "kind": kind, "message": message, "hint": hint, "schema": 1 }))).into_response()
    }
}

/// What a request is answered with.
pub type Answer = Result<Json<Value>, Refusal>;

/// Returns the JSON of an answer; each entry of a list has the version of its own.
pub fn json<T: Serialize>(answer: &T) -> Answer {
    let failed = |e: std::io::Error| Refusal::from(Error::io("write the answer", e));
    let value = serde_json::to_value(answer).map_err(|e| failed(e.into()))?;
    match value {
        Value::Array(list) => {
            let list = list.iter().map(versioned).collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
            Ok(Json(Value::Array(list)))
        }
        one => versioned(&one).map(Json).map_err(failed),
    }
}

/// Does something that may wait for disks, and answers with what comes of it.
pub async fn done<T, F>(service: Arc<Service>, work: F) -> Answer
where
    T: Serialize + Send + 'static,
    F: FnOnce(&Arc<Service>) -> Result<T, Error> + Send + 'static,
{
    let ended = tokio::task::spawn_blocking(move || work(&service)).await;
    let failed = |e: tokio::task::JoinError| Error::io("do what was asked", std::io::Error::other(e));
    json(&ended.map_err(failed)??)
}

/// Reads a request's JSON; none at all is an empty object.
pub fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refusal> {
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(text).map_err(|e| Refusal::senseless(format!("the request's JSON: {e}")))
}
