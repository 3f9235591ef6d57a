//! Nobody waits in silence: who waits long for a node is told for which.

use std::pin::pin;
use std::time::Duration;

use kvnode_client::Client;
use tokio::time::timeout;

use super::Names;
use crate::render::say;

/// Most answers take less.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// Does `work`, which asks by `client`, and says for whom it waits: after a second, and again when it waits for somebody else.
pub async fn patiently<T>(client: &Client, names: &Names, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut told = None;
    loop {
        if let Ok(done) = timeout(SILENCE_MAX, &mut work).await {
            return done;
        }
        let asked = client.asking();
        if told.replace(asked) != Some(asked) {
            say(&format!("waiting for {} to answer", names.name(asked)));
        }
    }
}
