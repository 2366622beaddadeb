//! The state backend as Terraform speaks to it.

use super::*;
use crate::store::Embedded;
use axum::body::Body;
use axum::http::Request;
use tower::ServiceExt;

struct Rig {
    _dir: tempfile::TempDir,
    backend: Backend<Embedded>,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(&dir.path().join("db")).unwrap());
    Rig {
        _dir: dir,
        backend: Backend::new(store, "secret"),
    }
}

impl Rig {
    async fn ask(&self, method: &str, path: &str, user: &str, body: &str) -> (u16, String) {
        let sent = base64::engine::general_purpose::STANDARD.encode(user);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Basic {sent}"))
            .body(Body::from(body.to_owned()))
            .unwrap();
        let answer = self
            .backend
            .clone()
            .router()
            .oneshot(request)
            .await
            .unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), STATE_MAX)
            .await
            .unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn code(&self, method: &str, path: &str, body: &str) -> u16 {
        self.ask(method, path, "run1:secret", body).await.0
    }
}

fn state(serial: u64, lineage: &str) -> String {
    format!(r#"{{"serial":{serial},"lineage":"{lineage}"}}"#)
}

const LOCK: &str = r#"{"ID":"l1","Who":"me"}"#;

#[tokio::test]
async fn a_state_needs_the_lock_and_only_moves_forward() {
    let r = rig();
    assert_eq!(r.code("GET", "/state/east", "").await, 404);
    assert_eq!(
        r.code("POST", "/state/east?ID=l1", &state(1, "x")).await,
        423
    );
    assert_eq!(r.code("LOCK", "/state/east", LOCK).await, 200);
    assert_eq!(
        r.code("POST", "/state/east?ID=l1", &state(1, "x")).await,
        200
    );
    assert_eq!(
        r.code("POST", "/state/east?ID=other", &state(2, "x")).await,
        423
    );
    assert_eq!(
        r.code("POST", "/state/east?ID=l1", &state(2, "x")).await,
        200
    );
    assert_eq!(
        r.code("POST", "/state/east?ID=l1", &state(2, "x")).await,
        200
    ); // a repetition
    assert_eq!(
        r.code("POST", "/state/east?ID=l1", &state(1, "x")).await,
        409
    ); // an older one
    assert_eq!(
        r.code("POST", "/state/east?ID=l1", &state(3, "y")).await,
        409
    ); // another's
    assert_eq!(r.code("POST", "/state/east?ID=l1", "junk").await, 400);
    assert_eq!(r.code("DELETE", "/state/east", "").await, 405);
    let (code, body) = r.ask("GET", "/state/east", "run1:secret", "").await;
    assert_eq!((code, body), (200, state(2, "x")));
    assert_eq!(r.code("GET", "/state/west", "").await, 404);
}

#[tokio::test]
async fn a_held_lock_names_its_holder_and_is_freed_only_by_him_or_for_him() {
    let r = rig();
    assert_eq!(r.code("LOCK", "/state/east", LOCK).await, 200);
    let (code, body) = r
        .ask("LOCK", "/state/east", "run2:secret", r#"{"ID":"l2"}"#)
        .await;
    assert_eq!((code, body.as_str()), (423, LOCK));
    assert_eq!(r.code("UNLOCK", "/state/east", r#"{"ID":"l2"}"#).await, 409);
    assert_eq!(r.code("UNLOCK", "/state/east", "").await, 409);
    assert!(!r.backend.release("east", "run2").await.unwrap());
    assert_eq!(
        r.backend.holder("east").await.unwrap().unwrap().user,
        "run1"
    );
    assert!(r.backend.release("east", "run1").await.unwrap());
    assert_eq!(r.code("LOCK", "/state/east", r#"{"ID":"l2"}"#).await, 200);
    assert_eq!(r.code("UNLOCK", "/state/east", r#"{"ID":"l2"}"#).await, 200);
}

#[tokio::test]
async fn strangers_and_crooked_names_get_nothing() {
    let r = rig();
    let (code, _) = r.ask("GET", "/state/east", "run1:wrong", "").await;
    assert_eq!(code, 401);
    assert_eq!(r.code("GET", "/state/east%2F..%2Flock", "").await, 400);
}

#[tokio::test]
async fn old_versions_are_kept_and_the_oldest_go() {
    let r = rig();
    assert_eq!(r.code("LOCK", "/state/east", LOCK).await, 200);
    for serial in 1..=VERSIONS_KEPT as u64 + 10 {
        assert_eq!(
            r.code("POST", "/state/east?ID=l1", &state(serial, "x"))
                .await,
            200
        );
    }
    let kept = r
        .backend
        .store
        .scan("provision/state/east/", None, 100)
        .await
        .unwrap();
    assert_eq!(kept.len(), VERSIONS_KEPT + 1);
}
