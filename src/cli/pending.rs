//! What waits for an operator: devices that ask to come in and nodes that ask to offer commands, as one queue.

use serde::Serialize;
use serde_json::{Value, json};

use super::devices::by_prefix;
use super::exit::{Exit, Failure};
use super::output::{self, ago, short_id};
use super::session::{Context, Session, decode};
use crate::client::call::shown;
use crate::machine;
use crate::rpc::types::device::{DevicePairList, PendingDevice};
use crate::rpc::types::node::{NodePairList, PendingNode};

/// Both stages of admission, newest first.
pub struct Queue(Vec<Waiting>);

/// The stages in which a node is let in; an operator's device has only the first.
#[derive(Serialize)]
#[serde(tag = "stage", rename_all = "lowercase")]
enum Waiting {
    Device(PendingDevice),
    Surface(PendingNode),
}

/// What an operator decided.
pub enum Decision<'a> {
    /// With the commands that are approved, if not all.
    Approve(Option<&'a [String]>),
    Reject,
}

impl Waiting {
    fn id(&self) -> &str {
        match self {
            Self::Device(device) => &device.request_id,
            Self::Surface(node) => &node.request_id,
        }
    }

    fn ts(&self) -> u64 {
        match self {
            Self::Device(device) => device.ts,
            Self::Surface(node) => node.ts,
        }
    }

    fn approve_command(&self, context: &Context) -> String {
        let family = match self {
            Self::Device(_) => "devices",
            Self::Surface(_) => "nodes",
        };
        let profile = context
            .common
            .profile
            .as_ref()
            .map_or_else(String::new, |name| format!("--profile {name} "));
        format!("portcullis {profile}{family} approve {}", self.id())
    }

    fn render(&self, context: &Context, now_ms: u64) -> String {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let from = |ip: &Option<String>, path: &Option<String>| match (ip, path) {
            (Some(ip), Some(path)) => format!("{ip} over {path}"),
            (ip, path) => ip.clone().or(path.clone()).unwrap_or_default(),
        };
        let (stage, id, mut rows) = match self {
            Self::Device(device) => {
                let scopes = device.scopes.as_deref().unwrap_or_default().join(",");
                let again = if device.is_repair == Some(true) {
                    ", paired before"
                } else {
                    ""
                };
                let role = format!("{} {scopes}{again}", text(&device.role));
                let rows = vec![
                    ("name", text(&device.client.display_name)),
                    ("asks", role),
                    ("from", from(&device.remote_ip, &device.path)),
                    ("page", text(&device.browser_origin)),
                ];
                ("device", &device.device_id, rows)
            }
            Self::Surface(node) => {
                let approved = node.approved_commands.as_deref().unwrap_or_default();
                let rows = vec![
                    ("name", text(&node.client.display_name)),
                    ("commands", difference(approved, &node.commands)),
                    ("declared", not_permitted(&node.not_permitted_commands)),
                    ("from", from(&node.remote_ip, &node.path)),
                ];
                ("surface", &node.node_id, rows)
            }
        };
        // A device's id is the SHA-256 of its key, and the Gateway has checked that it is.
        rows.insert(1, ("key", format!("sha256:{id}")));
        rows.push(("approve", self.approve_command(context)));
        let mut lines = vec![format!(
            "{stage} {}, {}",
            shown(self.id()),
            ago(now_ms, self.ts())
        )];
        for (name, value) in rows {
            if !value.trim().is_empty() {
                lines.push(format!("  {name:<9} {}", shown(value.trim())));
            }
        }
        lines.join("\n")
    }
}

/// What cannot be approved as things stand.
fn not_permitted(commands: &[String]) -> String {
    match commands {
        [] => String::new(),
        _ => format!(
            "not permitted: {} (gateway.nodes.commands.allow)",
            commands.join(" ")
        ),
    }
}

/// What a declaration would add to the last approval and take from it.
fn difference(approved: &[String], declared: &[String]) -> String {
    let marked = |sign: char, these: &[String], those: &[String]| {
        let new = these.iter().filter(|name| !those.contains(name));
        new.map(|name| format!("{sign}{name}")).collect::<Vec<_>>()
    };
    let mut words = marked('+', declared, approved);
    words.extend(marked('-', approved, declared));
    let same = declared.iter().filter(|name| approved.contains(name));
    match same.count() {
        0 => {}
        same => words.push(format!("({same} as before)")),
    }
    words.join(" ")
}

impl Queue {
    pub async fn fetch(session: &Session) -> Result<Self, Failure> {
        let devices = session.call("device.pair.list", &json!({})).await?;
        let nodes = session.call("node.pair.list", &json!({})).await?;
        let (devices, nodes): (DevicePairList, NodePairList) = (decode(&devices)?, decode(&nodes)?);
        Ok(Self::of(devices.pending, nodes.pending))
    }

    fn of(devices: Vec<PendingDevice>, nodes: Vec<PendingNode>) -> Self {
        let mut waiting: Vec<Waiting> = devices.into_iter().map(Waiting::Device).collect();
        waiting.extend(nodes.into_iter().map(Waiting::Surface));
        waiting.sort_by_key(|request| std::cmp::Reverse(request.ts()));
        Self(waiting)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn render(&self, context: &Context) -> String {
        let now_ms = machine::now_ms();
        let each = self.0.iter().map(|request| request.render(context, now_ms));
        each.collect::<Vec<_>>().join("\n\n")
    }

    /// The entries as the Gateway sent them, each with its stage and the command that approves it.
    pub fn to_json(&self, context: &Context) -> Vec<Value> {
        let entry = |request: &Waiting| {
            let mut entry = serde_json::to_value(request).unwrap_or_default();
            entry["approveCommand"] = request.approve_command(context).into();
            entry
        };
        self.0.iter().map(entry).collect()
    }

    fn find(&self, asked: &str) -> Result<Option<&Waiting>, Failure> {
        let ids: Vec<&str> = self.0.iter().map(Waiting::id).collect();
        let id = by_prefix(asked, &ids)?;
        Ok(self.0.iter().find(|request| request.id() == id))
    }
}

/// Decides a request of either stage.
pub async fn decide(
    context: &Context,
    session: &Session,
    asked: &str,
    decision: Decision<'_>,
) -> Result<(), Failure> {
    let queue = Queue::fetch(session).await?;
    let Some(request) = queue.find(asked)? else {
        let sentence = format!("no request {} waits for approval", shown(asked));
        return Err(Failure::new(Exit::Refused, sentence)
            .with_remedy("list what waits: portcullis nodes pending"));
    };
    let family = match request {
        Waiting::Device(_) => "device",
        Waiting::Surface(_) => "node",
    };
    let mut params = json!({ "requestId": request.id() });
    let verb = match (&decision, request) {
        (Decision::Approve(Some(_)), Waiting::Device(_)) => {
            let sentence = "this request is for the device itself; its commands wait in a second request once it is in";
            return Err(Failure::new(Exit::Refused, sentence).with_remedy("leave --commands out"));
        }
        (Decision::Approve(commands), _) => {
            if let Some(commands) = commands {
                params["commands"] = json!(commands);
            }
            "approve"
        }
        (Decision::Reject, _) => "reject",
    };
    let method = format!("{family}.pair.{verb}");
    let payload = session.call(&method, &params).await?;
    context.show(&payload, |answer: Value| {
        let done = if verb == "approve" {
            "approved"
        } else {
            "rejected"
        };
        let words = answer["node"]["commands"].as_array().into_iter().flatten();
        let words: Vec<&str> = words.filter_map(Value::as_str).collect();
        match request {
            Waiting::Device(device) => {
                format!("{done} device {}", shown(&short_id(&device.device_id)))
            }
            Waiting::Surface(_) if !words.is_empty() => {
                format!("{done}: {}", shown(&words.join(", ")))
            }
            Waiting::Surface(node) => format!("{done} node {}", shown(&short_id(&node.node_id))),
        }
    })
}

/// Shows the latest request and the exact command. Approving what one has not seen is not offered.
pub async fn show_latest(context: &Context, session: &Session) -> Result<(), Failure> {
    let mut queue = Queue::fetch(session).await?;
    queue.0.truncate(1);
    let Some(latest) = queue.0.first() else {
        return Err(Failure::new(Exit::Refused, "nothing waits for approval"));
    };
    output::line(&queue.render(context));
    Err(Failure::new(Exit::Refused, "nothing was approved yet")
        .with_remedy(shown(&latest.approve_command(context))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_declaration_is_shown_as_a_difference() {
        let declared = names(&["system.run", "system.which"]);
        assert_eq!(difference(&[], &declared), "+system.run +system.which");
        assert_eq!(
            difference(&names(&["system.which", "camera.snap"]), &declared),
            "+system.run -camera.snap (1 as before)"
        );
    }

    #[test]
    fn one_queue_of_both_stages_newest_first_and_no_guessing() {
        let device = |id: &str, ts| PendingDevice {
            request_id: id.to_owned(),
            ts,
            ..PendingDevice::default()
        };
        let node = |id: &str, ts| PendingNode {
            request_id: id.to_owned(),
            ts,
            ..PendingNode::default()
        };
        let queue = Queue::of(
            vec![device("aaaa-1", 1), device("cccc-1", 3)],
            vec![node("aaaa-2", 2)],
        );
        let ids: Vec<&str> = queue.0.iter().map(Waiting::id).collect();
        assert_eq!(ids, ["cccc-1", "aaaa-2", "aaaa-1"]);
        assert!(matches!(
            queue.find("aaaa-2"),
            Ok(Some(Waiting::Surface(_)))
        ));
        assert!(matches!(queue.find("cccc"), Ok(Some(Waiting::Device(_)))));
        assert!(queue.find("aaaa").is_err());
        assert!(matches!(queue.find("zzzz"), Ok(None)));
    }
}
