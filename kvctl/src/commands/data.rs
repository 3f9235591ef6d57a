//! put, get, delete, keys: with a causal session kept from command to command.

use kvnode_client::{Answer, Client, Error, Session};
use serde_json::Value;
use serde_json::value::RawValue;

use super::refusal::{explained, unanswered, unanswered_write};
use super::{Context, Names, client_of, patiently};
use crate::args::{DataArgs, Output};
use crate::error::{Code, Failure, Result};
use crate::render::{line, printable, say, show, stream_out, value as value_out};
use crate::runtime::Runtime;
use crate::session::SessionFile;
use crate::state::Record;

/// Keys asked for at a time.
const PAGE: usize = 1_000;

/// A client and the session that its requests belong to.
struct Data {
    record: Record,
    runtime: Runtime,
    names: Names,
    client: Client,
    session: Session,
    file: Option<SessionFile>,
}

impl Data {
    async fn open(context: &Context, args: &DataArgs) -> Result<Self> {
        let (record, runtime) = context.runtime().await?;
        let (client, names) = (client_of(&record, &runtime, &args.via).await?, Names::of(&record, &runtime));
        let file = if args.no_session {
            None
        } else {
            Some(SessionFile::open(&context.state, &args.session, args.reset_session)?)
        };
        let metadata = file.as_ref().and_then(|file| file.metadata.clone());
        Ok(Self { record, runtime, names, client, session: Session { metadata }, file })
    }

    /// Goes on with the session, and with what other commands have seen in it meanwhile.
    fn go_on(&mut self, context: &Context, args: &DataArgs) -> Result<()> {
        if !args.no_session {
            let file = SessionFile::open(&context.state, &args.session, false)?;
            self.session.metadata.clone_from(&file.metadata);
            self.file = Some(file);
        }
        Ok(())
    }

    /// Does a read. `done`: what an answer means, for the case that what the session has seen can't be kept.
    async fn read(
        &mut self,
        asked: impl AsyncFn(&Client, &mut Session) -> std::result::Result<Answer, Error>,
        done: &str,
    ) -> Result<Answer> {
        let answer = self.ask(asked).await?.map_err(|error| unanswered(&error, &self.names))?;
        self.close(answer, done).await
    }

    /// Does a write.
    async fn write(
        &mut self,
        asked: impl AsyncFn(&Client, &mut Session) -> std::result::Result<Answer, Error>,
        done: &str,
    ) -> Result<Answer> {
        let answer = self.ask(asked).await?.map_err(|error| unanswered_write(&error, &self.names))?;
        self.close(answer, done).await
    }

    /// Asks, and once more where the session is of a cluster that is gone: what was refused for that has done nothing.
    async fn ask(
        &mut self,
        asked: impl AsyncFn(&Client, &mut Session) -> std::result::Result<Answer, Error>,
    ) -> Result<std::result::Result<Answer, Error>> {
        let answer = patiently(&self.client, &self.names, asked(&self.client, &mut self.session)).await;
        let is_misfit = answer
            .as_ref()
            .is_ok_and(|answer| answer.status == 400 && answer.error().starts_with("Malformed causal-metadata"));
        if !is_misfit || self.session.metadata.is_none() {
            return Ok(answer);
        }
        self.renew().await?;
        Ok(patiently(&self.client, &self.names, asked(&self.client, &mut self.session)).await)
    }

    /// The nodes can't read what the session has seen. That they are another cluster than it belongs to is the one harmless
    /// reason: what it has seen is gone with the cluster.
    async fn renew(&mut self) -> Result<()> {
        let now = self.cluster().await;
        let Some(file) = &mut self.file else { return Ok(()) };
        match (&file.cluster, now) {
            (Some(was), Some(now)) if *was != now => {
                let name = file.name();
                say(&format!(
                    "session '{name}' is of a cluster that is gone, and begins anew: what it has seen is gone, too"
                ));
                file.renew(now);
                self.session.metadata = None;
                Ok(())
            }
            _ => Err(file.misfit("its causal metadata is damaged, or of a cluster that is gone")),
        }
    }

    /// What the nodes say which cluster they are.
    async fn cluster(&self) -> Option<String> {
        let status = self.client.look("/status").await.ok()?;
        status.json().get("cluster").and_then(Value::as_str).map(str::to_owned)
    }

    /// Keeps what the session has seen and leaves it to other commands: whoever reads what is printed next may take his time. Turns a
    /// refusal into a failure.
    async fn close(&mut self, answer: Answer, done: &str) -> Result<Answer> {
        let kept = self.keep().await;
        if !answer.is_success() {
            return Err(explained(&answer, &self.record, &self.runtime).await);
        }
        kept.map_err(|failure| Failure::new(failure.code, format!("{done}, but {failure}")))?;
        Ok(answer)
    }

    async fn keep(&mut self) -> Result<()> {
        let cluster = match &self.file {
            Some(SessionFile { cluster: None, .. }) if self.session.metadata.is_some() => self.cluster().await,
            _ => None,
        };
        let (Some(mut file), Some(metadata)) = (self.file.take(), &self.session.metadata) else { return Ok(()) };
        file.cluster = file.cluster.or(cluster);
        file.save(metadata).map_err(|failure| {
            let text = format!(
                "what session '{}' has seen can't be kept, and its next command may see something older: {failure}",
                file.name()
            );
            Failure::new(failure.code, text)
        })
    }
}

/// The answer as the node gave it, to the last digit.
fn show_answer(output: Output, answer: &Answer, text: impl FnOnce(&Value)) -> Result<()> {
    let document: &RawValue = serde_json::from_slice(&answer.body)
        .map_err(|_| Failure::new(Code::Failed, format!("what {} answers is no JSON", answer.node)))?;
    match output {
        // Between two parts of a document, line feeds are no more than space.
        Output::Json => line(&document.get().replace(['\n', '\r', '\t'], " ")),
        Output::Text => text(&answer.json()),
    }
    Ok(())
}

pub async fn put(context: &Context, key: &str, value: &str, args: &DataArgs) -> Result<()> {
    let json = RawValue::from_string(value.to_owned())
        .or_else(|_| serde_json::value::to_raw_value(value))
        .map_err(|error| Failure::usage(error.to_string()))?;
    let mut data = Data::open(context, args).await?;
    let answer =
        data.write(async |client, session| client.put(key, &json, session).await, "the value was written").await?;
    show_answer(context.output, &answer, say_written)
}

/// `created (2 replicas)`.
fn say_written(json: &Value) {
    let result = json.get("result").and_then(Value::as_str).unwrap_or("done");
    let replicas = json.get("replicas").and_then(Value::as_u64).unwrap_or(0);
    line(&format!("{} ({replicas} {})", printable(result), if replicas == 1 { "replica" } else { "replicas" }));
}

pub async fn get(context: &Context, key: &str, args: &DataArgs) -> Result<()> {
    let mut data = Data::open(context, args).await?;
    let answer = data.read(async |client, session| client.get(key, session).await, "the key was read").await?;
    show_answer(context.output, &answer, |_| {
        if let Some(value) = answer.value() {
            // A string is printed as it is; anything else as JSON, to the last digit.
            let text = serde_json::from_str::<String>(value.get()).unwrap_or_else(|_| value.get().to_owned());
            value_out(&text);
        }
    })
}

pub async fn delete(context: &Context, key: &str, args: &DataArgs) -> Result<()> {
    let mut data = Data::open(context, args).await?;
    let answer = data.write(async |client, session| client.delete(key, session).await, "the key was deleted").await?;
    show_answer(context.output, &answer, say_written)
}

pub async fn keys(context: &Context, prefix: &str, limit: Option<usize>, args: &DataArgs) -> Result<()> {
    let mut data = Data::open(context, args).await?;
    let mut all: Vec<String> = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = limit.map_or(PAGE, |limit| (limit - all.len()).min(PAGE));
        if page == 0 {
            break;
        }
        if cursor.is_some() {
            data.go_on(context, args)?;
        }
        let from = cursor.as_deref();
        let answer = data
            .read(async |client, session| client.keys(prefix, page, from, session).await, "the keys were read")
            .await?;
        let json = answer.json();
        let keys = json.get("keys").and_then(Value::as_array).cloned().unwrap_or_default();
        let keys: Vec<String> = keys.iter().filter_map(|key| key.as_str().map(str::to_owned)).collect();
        if context.output == Output::Text {
            // A line is a key, whatever is in it.
            keys.iter().for_each(|key| stream_out(format!("{}\n", printable(key)).as_bytes()));
        }
        all.extend(keys);
        match json.get("cursor").and_then(Value::as_str) {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    show(context.output, &super::object("keys", all), || {});
    Ok(())
}
