//! The node's session: connect, take commands, deliver results, reconnect.
//!
//! In: events of a Gateway. Out: results, each under the id of its request. Attacker controls: a Gateway that is not ours
//! controls every event; what it may make this machine do is `Commands`' to decide. Bounds: `INVOKES_MAX` commands at
//! once, `UNDELIVERED_MAX` results and `UNDELIVERED_BYTES_MAX` bytes kept, `REMEMBERED_MAX` ids. Errors: [`Stopped`].
//!
//! A request is executed at most once: an id that was seen is never run again, and its result, if it is still here, is
//! sent again. Commands go on while the connection is away; their results wait for the next one.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::retry::{self, Next, Used};
use crate::auth::scope::Role;
use crate::base::limits::INVOKE_TIMEOUT_MS_MAX;
use crate::client::{
    CallError, Client, ConnectError, ConnectOptions, Ended, Endpoint, Event, Events, Identity, Sent,
};
use crate::machine;
use crate::nodes::HostFacts;
use crate::rpc::types::connect::{ClientId, ClientMode};
use crate::rpc::types::node::{
    NodeError, NodeInvokeCancelEvent, NodeInvokeProgressParams, NodeInvokeRequestEvent,
    NodeInvokeResultAck, NodeInvokeResultParams,
};

/// Commands that are under way at once.
const INVOKES_MAX: usize = 64;
/// Results that wait for a connection; the oldest gives way.
const UNDELIVERED_MAX: usize = 256;
const UNDELIVERED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Ids of requests that were taken.
const REMEMBERED_MAX: usize = 4096;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const RESULT_TIMEOUT: Duration = Duration::from_secs(30);
const STATS_INTERVAL: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one: the back-off starts over.
const STABLE: Duration = Duration::from_secs(10);
const RESULT_METHOD: &str = "node.invoke.result";
const PROGRESS_METHOD: &str = "node.invoke.progress";
/// Before a piece of progress is sent again that the Gateway had no room for.
const PROGRESS_RETRY: Duration = Duration::from_secs(1);
const CAPS: [&str; 1] = ["system"];

pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What this machine can be told to do.
pub trait Commands: Send + Sync + 'static {
    /// The commands' names, as the node declares them.
    fn names(&self) -> Vec<String>;

    /// Where they execute, for the operators.
    fn facts(&self) -> HostFacts;

    /// Executes one command; the result as JSON text. Dropping the future ends what it started. `progress`, if somebody
    /// listens, takes what it prints while it runs.
    fn invoke(
        self: Arc<Self>,
        command: String,
        params_json: Option<String>,
        progress: Option<mpsc::Sender<String>>,
    ) -> BoxFuture<Result<String, NodeError>>;
}

/// What the operator of the node is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    Connected {
        gateway: String,
        version: String,
    },
    /// Said once per request.
    PairingRequired {
        request_id: Option<String>,
    },
    Disconnected {
        why: String,
        retry_in: Duration,
    },
    /// The device token could not be kept; the shared secret is needed again next time.
    TokenNotKept {
        why: String,
    },
}

/// Why the node host ended.
#[derive(Debug)]
pub enum Stopped {
    /// As asked.
    ByUs,
    /// The Gateway will refuse every further attempt.
    Refused(ConnectError),
    /// The shared secret cannot be read, and there is no device token.
    Credentials(String),
}

/// A node host's settings.
pub struct Settings {
    pub endpoint: Endpoint,
    pub identity: Arc<Identity>,
    pub display_name: String,
    pub break_glass: bool,
    /// Reads the shared secret, anew for each attempt that needs it.
    pub shared: Box<dyn Fn() -> Result<Sent, String> + Send + Sync>,
    pub notify: Box<dyn Fn(&Notice) + Send + Sync>,
}

/// Runs until `stop` ends, or until further attempts are no use.
pub async fn run(
    settings: Settings,
    commands: Arc<dyn Commands>,
    stop: impl Future<Output = ()>,
) -> Stopped {
    let mut host = NodeHost::new(settings, commands);
    tokio::select! {
        () = stop => Stopped::ByUs,
        stopped = Box::pin(host.run()) => stopped,
    }
}

struct NodeHost {
    settings: Settings,
    commands: Arc<dyn Commands>,
    /// Results of commands, from their tasks.
    results: mpsc::UnboundedReceiver<NodeInvokeResultParams>,
    finished: mpsc::UnboundedSender<NodeInvokeResultParams>,
    /// Ids of results that have reached the Gateway.
    delivered: mpsc::UnboundedReceiver<String>,
    deliver: mpsc::UnboundedSender<String>,
    running: HashMap<String, Running>,
    undelivered: VecDeque<NodeInvokeResultParams>,
    seen: VecDeque<String>,
    failures: u32,
    /// The Gateway has refused the stored token; a new one will replace it.
    token_refused: bool,
    pairing_told: Option<Option<String>>,
}

/// A command under way. Dropped, it ends.
struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl NodeHost {
    fn new(settings: Settings, commands: Arc<dyn Commands>) -> Self {
        // Unbounded channels, but each holds at most what `running` and `undelivered` are bounded to.
        let (finished, results) = mpsc::unbounded_channel();
        let (deliver, delivered) = mpsc::unbounded_channel();
        Self {
            settings,
            commands,
            results,
            finished,
            delivered,
            deliver,
            running: HashMap::new(),
            undelivered: VecDeque::new(),
            seen: VecDeque::new(),
            failures: 0,
            token_refused: false,
            pairing_told: None,
        }
    }

    async fn run(&mut self) -> Stopped {
        loop {
            let (sent, used) = match self.credentials() {
                Ok(found) => found,
                Err(why) => return Stopped::Credentials(why),
            };
            let attempt = Box::pin(Client::connect(
                &self.settings.endpoint,
                &self.connect_options(sent),
            ))
            .await;
            let wait = match attempt {
                Ok((client, events)) => {
                    let began = Instant::now();
                    let ended = self.session(client, events).await;
                    if began.elapsed() >= STABLE {
                        self.failures = 0;
                    }
                    let wait = self.next_backoff();
                    self.tell_disconnected(&ended.to_string(), wait);
                    wait
                }
                Err(error) => match retry::after(&error, used, self.has_shared()) {
                    Next::Stop => return Stopped::Refused(error),
                    Next::UseShared => {
                        self.token_refused = true;
                        Duration::ZERO
                    }
                    Next::Pairing { request_id } => {
                        self.tell_pairing(request_id);
                        let wait = retry::pairing_wait(self.failures, random());
                        self.failures = self.failures.saturating_add(1);
                        wait
                    }
                    Next::Retry { at_least } => {
                        let wait = self.next_backoff().max(at_least);
                        self.tell_disconnected(&error.to_string(), wait);
                        wait
                    }
                },
            };
            self.pause(wait).await;
        }
    }

    /// The device token if we have one that is not known to be refused, else the shared secret.
    fn credentials(&self) -> Result<(Sent, Used), String> {
        if !self.token_refused {
            let key = self.settings.endpoint.key();
            let token = self
                .settings
                .identity
                .token(&key, Role::Node.as_str())
                .map_err(|error| error.to_string())?;
            if token.is_some() {
                let sent = Sent {
                    device_token: token,
                    ..Sent::default()
                };
                return Ok((sent, Used::DeviceToken));
            }
        }
        Ok(((self.settings.shared)()?, Used::Shared))
    }

    fn has_shared(&self) -> bool {
        (self.settings.shared)().is_ok_and(|sent| sent.token.is_some() || sent.password.is_some())
    }

    fn connect_options(&self, sent: Sent) -> ConnectOptions {
        let mut options = ConnectOptions::new(
            ClientId::NodeHost,
            ClientMode::Node,
            Role::Node,
            CONNECT_TIMEOUT,
        );
        options.client.display_name = Some(self.settings.display_name.clone());
        options.caps = CAPS.map(str::to_owned).to_vec();
        options.commands = Some(self.commands.names());
        options.path_env = std::env::var("PATH").ok();
        options.sent = sent;
        options.identity = Some(Arc::clone(&self.settings.identity));
        options.break_glass = self.settings.break_glass;
        options
    }

    fn next_backoff(&mut self) -> Duration {
        let wait = retry::backoff(self.failures, random());
        self.failures = self.failures.saturating_add(1);
        wait
    }

    fn tell_disconnected(&self, why: &str, retry_in: Duration) {
        (self.settings.notify)(&Notice::Disconnected {
            why: why.to_owned(),
            retry_in,
        });
    }

    fn tell_pairing(&mut self, request_id: Option<String>) {
        if self.pairing_told.as_ref() != Some(&request_id) {
            (self.settings.notify)(&Notice::PairingRequired {
                request_id: request_id.clone(),
            });
            self.pairing_told = Some(request_id);
        }
    }

    /// Waits for the next attempt, while results go on coming in.
    async fn pause(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                Some(result) = self.results.recv() => {
                    self.keep(result);
                }
                Some(id) = self.delivered.recv() => self.forget(&id),
            }
        }
    }

    async fn session(&mut self, client: Client, mut events: Events) -> Ended {
        self.greet(&client);
        let mut facts = self.commands.facts();
        report(&client, HostFacts::EVENT, &facts);
        for result in &self.undelivered {
            self.send(&client, result.clone());
        }
        let mut stats = tokio::time::interval(STATS_INTERVAL);
        stats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Ok(event) => self.take(&client, &event),
                    Err(ended) => return ended,
                },
                Some(result) = self.results.recv() => {
                    self.report_changes(&client, &mut facts);
                    if self.keep(result.clone()) {
                        self.send(&client, result);
                    }
                }
                Some(id) = self.delivered.recv() => self.forget(&id),
                _ = stats.tick() => {
                    let stats = machine::host_stats(Path::new("/"));
                    report(&client, "node.host.stats", &stats);
                    self.report_changes(&client, &mut facts);
                }
            }
        }
    }

    /// A command may have changed the policy, as may whoever edits its file.
    fn report_changes(&self, client: &Client, facts: &mut HostFacts) {
        let now = self.commands.facts();
        if now != *facts {
            report(client, HostFacts::EVENT, &now);
            *facts = now;
        }
    }

    fn greet(&mut self, client: &Client) {
        let hello = client.hello();
        (self.settings.notify)(&Notice::Connected {
            gateway: self.settings.endpoint.to_string(),
            version: hello.server.version.clone(),
        });
        self.pairing_told = None;
        let Some(token) = hello.device_token() else {
            return;
        };
        let key = self.settings.endpoint.key();
        let kept = self
            .settings
            .identity
            .set_token(&key, Role::Node.as_str(), Some(&token));
        match kept {
            Ok(()) => self.token_refused = false,
            Err(error) => (self.settings.notify)(&Notice::TokenNotKept {
                why: error.to_string(),
            }),
        }
    }

    fn take(&mut self, client: &Client, event: &Event) {
        let own_id = self.settings.identity.id().as_str();
        match event.name.as_str() {
            "node.invoke.request" => {
                if let Some(request) = event.decode::<NodeInvokeRequestEvent>()
                    && request.node_id == own_id
                    && !request.id.is_empty()
                {
                    self.invoke(client, request);
                }
            }
            "node.invoke.cancel" => {
                if let Some(cancel) = event.decode::<NodeInvokeCancelEvent>()
                    && cancel.node_id == own_id
                {
                    // Nothing is sent for a cancelled command, as in the reference.
                    self.running.remove(&cancel.invoke_id);
                }
            }
            _ => {}
        }
    }

    fn invoke(&mut self, client: &Client, request: NodeInvokeRequestEvent) {
        if self.seen.contains(&request.id) {
            let kept = self
                .undelivered
                .iter()
                .find(|result| result.id == request.id);
            if let Some(result) = kept {
                self.send(client, result.clone());
            }
            return;
        }
        if self.running.len() >= INVOKES_MAX {
            let error = NodeError {
                code: Some("UNAVAILABLE".to_owned()),
                message: Some(format!(
                    "node is busy: {INVOKES_MAX} commands are under way"
                )),
            };
            self.send(client, self.result(request.id, Err(error)));
            return;
        }
        if self.seen.len() >= REMEMBERED_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(request.id.clone());
        let (progress, pieces) = request.progress.then(|| mpsc::channel(1)).unzip();
        let work =
            Arc::clone(&self.commands).invoke(request.command, request.params_json, progress);
        // The Gateway's deadline is ours too: it cannot tell us to stop while the connection is away.
        let time = Duration::from_millis(
            request
                .timeout_ms
                .map_or(INVOKE_TIMEOUT_MS_MAX, |ms| ms.min(INVOKE_TIMEOUT_MS_MAX)),
        );
        let finished = self.finished.clone();
        let (id, node_id) = (request.id.clone(), request.node_id);
        let client = client.clone();
        let task = tokio::spawn(async move {
            // What it prints is on its way before its result is: both go through the client's one queue.
            let work = async {
                tokio::select! {
                    outcome = work => outcome,
                    never = report_progress(&client, &id, &node_id, pieces) => match never {},
                }
            };
            // Dropped with its time over, the command ends.
            let outcome = tokio::time::timeout(time, work).await.unwrap_or_else(|_| {
                Err(NodeError {
                    code: Some("TIMEOUT".to_owned()),
                    message: Some("the invocation's time is over".to_owned()),
                })
            });
            // The receiver is gone only when the whole node host is.
            let _ = finished.send(result(id, node_id, outcome));
        });
        self.running
            .insert(request.id, Running(task.abort_handle()));
    }

    fn result(&self, id: String, outcome: Result<String, NodeError>) -> NodeInvokeResultParams {
        result(id, self.settings.identity.id().to_string(), outcome)
    }

    /// Sends a result; it stays in `undelivered` until the Gateway has acknowledged it.
    fn send(&self, client: &Client, result: NodeInvokeResultParams) {
        let (client, deliver) = (client.clone(), self.deliver.clone());
        tokio::spawn(async move {
            let mut answer = client.call(RESULT_METHOD, &result, RESULT_TIMEOUT).await;
            if let Err(error @ CallError::TooLarge { .. }) = answer {
                let error = NodeError {
                    code: Some("UNAVAILABLE".to_owned()),
                    message: Some(format!("result not sent: {error}")),
                };
                let instead = self::result(result.id.clone(), result.node_id.clone(), Err(error));
                answer = client.call(RESULT_METHOD, &instead, RESULT_TIMEOUT).await;
            }
            // A refusal is an answer too: sending the result again would change nothing.
            if matches!(answer, Ok(_) | Err(CallError::Refused(_))) {
                let _ = deliver.send(result.id);
            }
        });
    }

    /// Keeps a result until it is delivered. `false`: its command was cancelled meanwhile, and nobody waits for it.
    fn keep(&mut self, result: NodeInvokeResultParams) -> bool {
        if self.running.remove(&result.id).is_none() {
            return false;
        }
        self.undelivered.push_back(result);
        let mut bytes: usize = self.undelivered.iter().map(size).sum();
        while self.undelivered.len() > UNDELIVERED_MAX || bytes > UNDELIVERED_BYTES_MAX {
            let oldest = self.undelivered.pop_front();
            bytes = bytes.saturating_sub(oldest.as_ref().map_or(bytes, size));
        }
        true
    }

    fn forget(&mut self, id: &str) {
        self.undelivered.retain(|result| result.id != id);
    }
}

impl Commands for super::Host {
    fn names(&self) -> Vec<String> {
        self.offered.iter().map(|&name| name.to_owned()).collect()
    }

    fn facts(&self) -> HostFacts {
        let (mode, sha256) = self.policy_facts();
        HostFacts {
            shell: self
                .env_text("SHELL")
                .unwrap_or_else(|| "/bin/sh".to_owned()),
            kernel: machine::platform().kernel,
            exec_mode: mode.as_str().to_owned(),
            exec_policy_sha256: sha256,
        }
    }

    fn invoke(
        self: Arc<Self>,
        command: String,
        params_json: Option<String>,
        progress: Option<mpsc::Sender<String>>,
    ) -> BoxFuture<Result<String, NodeError>> {
        Box::pin(async move {
            // Dropping this future drops the canceller, which ends the command.
            let (_canceller, cancelled) = super::cancellation();
            let context = super::Context {
                host: self,
                cancelled,
                progress,
            };
            super::handle(&command, params_json.as_deref(), &context)
                .await
                .map_err(|error| NodeError {
                    code: Some(error.code.to_owned()),
                    message: Some(error.message),
                })
        })
    }
}

fn size(result: &NodeInvokeResultParams) -> usize {
    result.payload_json.as_ref().map_or(0, String::len) + result.id.len()
}

fn result(
    id: String,
    node_id: String,
    outcome: Result<String, NodeError>,
) -> NodeInvokeResultParams {
    let (ok, payload_json, error) = match outcome {
        Ok(payload_json) => (true, Some(payload_json), None),
        Err(error) => (false, None, Some(error)),
    };
    NodeInvokeResultParams {
        id,
        node_id,
        ok,
        payload: None,
        payload_json,
        error,
    }
}

/// Tells the Gateway something about this machine.
fn report(client: &Client, event: &'static str, payload: &impl Serialize) {
    let Ok(text) = serde_json::to_string(payload) else {
        return;
    };
    let client = client.clone();
    tokio::spawn(async move {
        let params = json!({"event": event, "payloadJSON": text});
        // Nothing depends on it; the next session or minute brings the next one.
        let _ = client.call("node.event", &params, RESULT_TIMEOUT).await;
    });
}

/// Reports what a command prints, a piece after the one before was taken, until the Gateway wants no more of it.
async fn report_progress(
    client: &Client,
    id: &str,
    node_id: &str,
    pieces: Option<mpsc::Receiver<String>>,
) -> Infallible {
    if let Some(mut pieces) = pieces {
        let mut seq = 0;
        while let Some(chunk) = pieces.recv().await {
            let piece = NodeInvokeProgressParams {
                invoke_id: id.to_owned(),
                node_id: node_id.to_owned(),
                seq,
                chunk,
            };
            let answer = loop {
                match client.call(PROGRESS_METHOD, &piece, RESULT_TIMEOUT).await {
                    Err(CallError::Refused(error)) if error.retryable == Some(true) => {
                        tokio::time::sleep(PROGRESS_RETRY).await;
                    }
                    answer => break answer,
                }
            };
            let ack = answer.map(|ack| serde_json::from_str::<NodeInvokeResultAck>(ack.get()));
            if !matches!(ack, Ok(Ok(NodeInvokeResultAck { ignored: None, .. }))) {
                break;
            }
            seq += 1;
        }
    }
    std::future::pending().await
}

fn random() -> u32 {
    u32::from_le_bytes(machine::random())
}

#[cfg(test)]
mod tests;
