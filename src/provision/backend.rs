//! Terraform's `http` state backend, served from the controller's own store: a state is as safe as
//! the fleet's records are, older versions are kept, and two runs at one site cannot overlap.
//!
//! ```text
//! GET    /state/SITE            the current state, 404 if there is none
//! POST   /state/SITE?ID=lock    the next state; refused without the lock, with another lineage or
//!                               with an older serial
//! LOCK   /state/SITE            409 with the holder's own words if it is held
//! UNLOCK /state/SITE
//! ```
//!
//! Each run has a user name of its own, so that a lock whose run was killed can be told from one
//! that a person holds: see [`Backend::release`]. The state is never deleted over this interface.

use crate::store::{Commit, Store, Transaction};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::Engine;
use node::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A larger state is a mistake: a node takes about 2 KiB.
const STATE_MAX: usize = 32 << 20;
/// Older versions that are kept of each site's state.
const VERSIONS_KEPT: usize = 20;

/// The state backend over a store.
pub struct Backend<S> {
    store: Arc<S>,
    password: Arc<str>,
}

impl<S> Clone for Backend<S> {
    fn clone(&self) -> Self {
        Backend {
            store: self.store.clone(),
            password: self.password.clone(),
        }
    }
}

#[derive(Deserialize, Serialize)]
struct Lock {
    /// The run.
    user: String,
    /// What Terraform said of itself, word by word.
    info: String,
    id: String,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The run's user name.
    pub user: String,
    /// What Terraform said of itself when it took the lock.
    pub words: String,
}

#[derive(Deserialize)]
struct LockInfo {
    #[serde(rename = "ID")]
    id: String,
}

#[derive(Deserialize)]
struct Version {
    serial: u64,
    lineage: String,
}

#[derive(Deserialize)]
struct Asked {
    #[serde(rename = "ID")]
    id: Option<String>,
}

fn lock_key(site: &str) -> String {
    format!("provision/lock/{site}")
}

fn state_prefix(site: &str) -> String {
    format!("provision/state/{site}/")
}

impl<S: Store> Backend<S> {
    /// Serve states from `store` to whoever knows the password.
    #[must_use]
    pub fn new(store: Arc<S>, password: &str) -> Backend<S> {
        Backend {
            store,
            password: password.into(),
        }
    }

    /// The routes, to be served on a loopback address.
    pub fn router(self) -> Router {
        Router::new()
            .route("/state/{site}", any(serve::<S>))
            .layer(DefaultBodyLimit::max(STATE_MAX))
            .with_state(self)
    }

    /// Break the lock of a run that is known to be over. A lock of anybody else stays.
    ///
    /// # Errors
    /// The store fails.
    pub async fn release(&self, site: &str, user: &str) -> Result<bool> {
        let key = lock_key(site);
        let Some(held) = self.store.get(&key).await? else {
            return Ok(false);
        };
        if !serde_json::from_slice::<Lock>(&held).is_ok_and(|l| l.user == user) {
            return Ok(false);
        }
        let free = Transaction {
            expect: vec![(key.clone(), Some(held))],
            write: vec![(key, None)],
        };
        Ok(self.store.commit(free).await? == Commit::Done)
    }

    /// Who holds the lock, if anybody does.
    ///
    /// # Errors
    /// The store fails.
    pub async fn holder(&self, site: &str) -> Result<Option<Holder>> {
        let held = self.store.get(&lock_key(site)).await?;
        let lock = held.and_then(|l| serde_json::from_slice::<Lock>(&l).ok());
        Ok(lock.map(|l| Holder {
            user: l.user,
            words: l.info,
        }))
    }

    /// The site's current state, as Terraform wrote it.
    ///
    /// # Errors
    /// The store fails.
    pub async fn state(&self, site: &str) -> Result<Option<Vec<u8>>> {
        let mut newest = self.store.last(&state_prefix(site), 1).await?;
        Ok(newest.pop().map(|(_, state)| state))
    }

    async fn put(&self, site: &str, id: Option<&str>, state: &[u8]) -> Result<StatusCode> {
        let Ok(new) = serde_json::from_slice::<Version>(state) else {
            return Ok(StatusCode::BAD_REQUEST);
        };
        let lock = self.store.get(&lock_key(site)).await?;
        let holds = lock
            .as_deref()
            .and_then(|l| serde_json::from_slice::<Lock>(l).ok())
            .is_some_and(|l| Some(l.id.as_str()) == id);
        if !holds {
            return Ok(StatusCode::LOCKED);
        }
        let prefix = state_prefix(site);
        let key = format!("{prefix}{:020}", new.serial);
        let mut known = self.store.last(&prefix, VERSIONS_KEPT + 1).await?;
        if let Some((_, bytes)) = known.last() {
            let old: Version = serde_json::from_slice(bytes).map_err(|e| {
                Error::new(
                    ErrorKind::Corrupt,
                    format!("stored state of site {site}: {e}"),
                )
            })?;
            let repeated = new.serial == old.serial && state == bytes;
            if old.lineage != new.lineage || (new.serial <= old.serial && !repeated) {
                return Ok(StatusCode::CONFLICT);
            }
        }
        let mut write = vec![(key.clone(), Some(state.to_vec()))];
        if known.len() > VERSIONS_KEPT && known[0].0 != key {
            write.push((known.swap_remove(0).0, None));
        }
        let next = Transaction {
            // a lock that was broken in between must not let a late write through
            expect: vec![(lock_key(site), lock)],
            write,
        };
        Ok(match self.store.commit(next).await? {
            Commit::Done => StatusCode::OK,
            Commit::Conflict => StatusCode::LOCKED,
        })
    }

    pub(super) async fn lock(&self, site: &str, user: String, body: &[u8]) -> Result<Response> {
        let Ok(info) = serde_json::from_slice::<LockInfo>(body) else {
            return Ok(StatusCode::BAD_REQUEST.into_response());
        };
        let key = lock_key(site);
        let lock = Lock {
            user,
            info: String::from_utf8_lossy(body).into_owned(),
            id: info.id,
        };
        let take = Transaction {
            expect: vec![(key.clone(), None)],
            write: vec![(key.clone(), Some(encode(&lock)?))],
        };
        if self.store.commit(take).await? == Commit::Done {
            return Ok(StatusCode::OK.into_response());
        }
        let holder = self.store.get(&key).await?.unwrap_or_default();
        let words = serde_json::from_slice::<Lock>(&holder).map_or(String::new(), |l| l.info);
        Ok((StatusCode::LOCKED, words).into_response())
    }

    async fn unlock(&self, site: &str, body: &[u8]) -> Result<StatusCode> {
        let key = lock_key(site);
        let Some(held) = self.store.get(&key).await? else {
            return Ok(StatusCode::OK);
        };
        // `terraform force-unlock` sends the id alone; an empty body names nobody
        let asked = serde_json::from_slice::<LockInfo>(body).map(|l| l.id);
        let holds =
            serde_json::from_slice::<Lock>(&held).is_ok_and(|l| asked.is_ok_and(|id| id == l.id));
        if !holds {
            return Ok(StatusCode::CONFLICT);
        }
        let free = Transaction {
            expect: vec![(key.clone(), Some(held))],
            write: vec![(key, None)],
        };
        Ok(match self.store.commit(free).await? {
            Commit::Done => StatusCode::OK,
            Commit::Conflict => StatusCode::CONFLICT,
        })
    }

    /// The run's name, if the password is right.
    fn user(&self, headers: &HeaderMap) -> Option<String> {
        let sent = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let plain = base64::engine::general_purpose::STANDARD
            .decode(sent.strip_prefix("Basic ")?)
            .ok()?;
        let plain = String::from_utf8(plain).ok()?;
        let (user, password) = plain.split_once(':')?;
        // hashes compare in constant time
        (blake3::hash(password.as_bytes()) == blake3::hash(self.password.as_bytes()))
            .then(|| user.to_owned())
    }
}

fn encode(lock: &Lock) -> Result<Vec<u8>> {
    serde_json::to_vec(lock)
        .map_err(|e| Error::new(ErrorKind::Broken, format!("write a state lock: {e}")))
}

async fn serve<S: Store>(
    State(backend): State<Backend<S>>,
    Path(site): Path<String>,
    Query(asked): Query<Asked>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(user) = backend.user(&headers) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    // names are keys: a slash would reach into another site's
    if site.is_empty()
        || !site
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let answer = match method.as_str() {
        "GET" => backend.state(&site).await.map(|state| match state {
            Some(state) => ([(header::CONTENT_TYPE, "application/json")], state).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }),
        "POST" => backend
            .put(&site, asked.id.as_deref(), &body)
            .await
            .map(IntoResponse::into_response),
        "LOCK" => backend.lock(&site, user, &body).await,
        "UNLOCK" => backend
            .unlock(&site, &body)
            .await
            .map(IntoResponse::into_response),
        _ => Ok(StatusCode::METHOD_NOT_ALLOWED.into_response()),
    };
    answer.unwrap_or_else(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response())
}

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
