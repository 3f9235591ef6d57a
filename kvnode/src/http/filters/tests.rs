use http_body_util::{BodyExt, Full};
use hyper::service::Service;
use hyper::{Request, StatusCode};
use hyper_util::service::TowerToHyperService;
use kvnode_core::store::memory::MemoryStore;
use kvnode_types::ident::Addr;

use super::super::route::{self, TABLE};
use super::*;
use crate::limits::Limits;
use crate::node::NodeHandle;
use crate::node::tests::{parts, ready as ready_node};

async fn caller() -> Arc<Caller> {
    let me: Addr = "127.0.0.1:8090".parse().unwrap();
    let node = NodeHandle::start(parts(Box::new(MemoryStore::new()), &me, vec![me.clone()])).unwrap();
    ready_node(&node).await;
    let handles = crate::handles::Handles::of_process().unwrap();
    Caller::alone(Front::new(node, Limits::default(), &handles))
}

/// Status, whether the body is a JSON object with an `error`, and the body.
async fn asked(root: Root, caller: &Arc<Caller>, method: &Method, path: &str) -> (StatusCode, bool, String) {
    let mut request = Request::builder().method(method).uri(path).body(Full::new(Bytes::new())).unwrap();
    let looked_up = route::look_up(method, path);
    request.extensions_mut().insert(Arrival { caller: caller.clone(), looked_up, body_min: 0 });
    let response = TowerToHyperService::new(warp::service(root)).call(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let told = serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|json| json["error"].is_string());
    (status, told, text)
}

#[tokio::test(flavor = "current_thread")]
async fn every_entry_has_a_filter() {
    let caller = caller().await;
    let mut count = 0;
    for entry in TABLE.iter().filter(|entry| !matches!(entry.group, Group::Key | Group::Peer)) {
        let path = entry.pattern.replace("<id>", "s1");
        for method in entry.methods {
            let (status, told, text) = asked(root(), &caller, method, &path).await;
            assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{method} {path}: {text}");
            assert!(status.is_success() || told, "{method} {path}: {status} {text}");
            count += 1;
        }
    }
    assert!(count > TABLE.len(), "{count} requests");
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_no_route_is_told() {
    let caller = caller().await;
    for (method, path, wanted) in [
        (Method::GET, "/nowhere", StatusCode::NOT_FOUND),
        (Method::GET, "/view/", StatusCode::NOT_FOUND),
        (Method::POST, "/view", StatusCode::METHOD_NOT_ALLOWED),
        (Method::PATCH, "/kvs/x", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let (status, told, text) = asked(root(), &caller, &method, path).await;
        assert!(status == wanted && told, "{method} {path}: {status} {text}");
    }
}

/// A rejection of warp's own would be plain text, or the rejection's debug form.
#[tokio::test(flavor = "current_thread")]
async fn a_rejection_that_is_none_of_ours_is_an_error_of_the_contract() {
    let caller = caller().await;
    let nowhere = warp::any().and_then(|| ready(Err::<Reply, Rejection>(reject::not_found())));
    let missing = ext::get::<u8>().and_then(|_| ready(Err::<Reply, Rejection>(reject::not_found())));
    for root in [answering(nowhere), answering(missing)] {
        let (status, told, text) = asked(root, &caller, &Method::GET, "/view").await;
        assert!(status == StatusCode::INTERNAL_SERVER_ERROR && told, "{status} {text}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn data_is_refused_once_the_node_stops() {
    let caller = caller().await;
    caller.front.gate.close();
    for (path, wanted) in
        [("/kvs", 503), ("/shard/key-count/s1", 503), ("/ready", 503), ("/view", 200), ("/health", 200)]
    {
        let (status, _, text) = asked(root(), &caller, &Method::GET, path).await;
        assert_eq!(status.as_u16(), wanted, "{path}: {text}");
    }
}
