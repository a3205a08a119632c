//! What a message that begins with `/` asks the built-in agent to do.
//!
//! ```text
//! /nodes                         the nodes, and whether each can run a command now
//! /run [node] <command>          run <command> with the node's shell
//! /which [node] <program> ...    where programs are on a node
//! /help
//! ```
//!
//! `[node]` is `@name`, `@"a name with spaces"`, or a bare word that **is exactly** a known node's display name, its
//! id, or at least six leading hexadecimal digits of its id. Any other first word belongs to the command. `--` ends
//! the guessing: all behind it is the command. Without a node, the only ready one is taken; with several, the agent
//! asks which.
//!
//! In: text and the nodes that the requester may see. Out: a `Command`, a node, or a refusal that says what to type.
//! Attacker controls: the text, and the nodes' display names. Bounds: those of the message;
//! `limits::WHICH_BINS_MAX`. Errors: `CommandRefusal`, `TargetRefusal`.

use std::fmt;

use crate::base::limits;

use super::render;
use super::tools::{Node, ToolRefusal};

/// The shortest start of an id that names a node.
const ID_PREFIX_CHARS_MIN: usize = 6;
/// How many nodes a refusal lists.
const LISTED_NODES_MAX: usize = 20;
/// The longest name of a program, in bytes.
const BIN_BYTES_MAX: usize = 128;

/// What `/help` answers, and the commands that a client may offer.
pub const HELP: &[(&str, &str, &str)] = &[
    (
        "nodes",
        "/nodes",
        "List the nodes and whether each can run a command now.",
    ),
    (
        "run",
        "/run [node] <command>",
        "Run a shell command on a node.",
    ),
    (
        "which",
        "/which [node] <program> ...",
        "Find where programs are on a node.",
    ),
    ("help", "/help", "Show this list."),
];

/// A message, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command<'a> {
    /// No command: words for a model.
    Text,
    Help,
    Nodes,
    /// The text behind `/run`, the node not yet told from the command.
    Run(&'a str),
    /// The text behind `/which`.
    Which(&'a str),
}

/// A command that cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandRefusal {
    Unknown {
        name: String,
    },
    RunWithoutCommand,
    WhichWithoutProgram,
    TooManyPrograms {
        got: usize,
        limit: usize,
    },
    ProgramName {
        name: String,
    },
    UnclosedQuote,
    /// A NUL cannot be part of an argument.
    Nul,
}

/// A node that cannot be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetRefusal {
    NoNodes,
    NoneReady { states: Vec<String> },
    Several { names: Vec<String> },
    Unknown { name: String },
    Shared { name: String, ids: Vec<String> },
}

/// The node and the command of one `/run`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target<'a> {
    /// As typed behind `@`, or the bare word that names a known node.
    pub node: Option<&'a str>,
    pub command: &'a str,
}

/// Reads a message.
pub fn parse(message: &str) -> Result<Command<'_>, CommandRefusal> {
    let message = message.trim();
    let Some(line) = message.strip_prefix('/') else {
        return Ok(Command::Text);
    };
    let (name, rest) = first_word(line);
    if rest.contains('\0') {
        return Err(CommandRefusal::Nul);
    }
    match name.to_ascii_lowercase().as_str() {
        "help" | "commands" => Ok(Command::Help),
        "nodes" => Ok(Command::Nodes),
        "run" if rest.is_empty() => Err(CommandRefusal::RunWithoutCommand),
        "run" => Ok(Command::Run(rest)),
        "which" if rest.is_empty() => Err(CommandRefusal::WhichWithoutProgram),
        "which" => Ok(Command::Which(rest)),
        _ => Err(CommandRefusal::Unknown {
            name: render::printable(render::head(name, 64)),
        }),
    }
}

/// Tells the node from the command. `rest` is what `parse` returned.
pub fn target<'a>(rest: &'a str, nodes: &[Node]) -> Result<Target<'a>, CommandRefusal> {
    let found = split_target(rest, nodes)?;
    if found.command.is_empty() {
        return Err(CommandRefusal::RunWithoutCommand);
    }
    Ok(found)
}

/// Tells the node from the programs of a `/which`.
pub fn which_target<'a>(
    rest: &'a str,
    nodes: &[Node],
) -> Result<(Option<&'a str>, Vec<&'a str>), CommandRefusal> {
    let found = split_target(rest, nodes)?;
    let bins: Vec<&str> = found.command.split_whitespace().collect();
    if bins.is_empty() {
        return Err(CommandRefusal::WhichWithoutProgram);
    }
    check_bins(&bins)?;
    Ok((found.node, bins))
}

/// Programs are names, not paths or texts for a shell.
pub fn check_bins(bins: &[&str]) -> Result<(), CommandRefusal> {
    if bins.len() > limits::WHICH_BINS_MAX {
        return Err(CommandRefusal::TooManyPrograms {
            got: bins.len(),
            limit: limits::WHICH_BINS_MAX,
        });
    }
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    match bins
        .iter()
        .find(|bin| bin.is_empty() || bin.len() > BIN_BYTES_MAX || !bin.chars().all(plain))
    {
        Some(bin) => Err(CommandRefusal::ProgramName {
            name: render::printable(render::head(bin, BIN_BYTES_MAX)),
        }),
        None => Ok(()),
    }
}

fn split_target<'a>(rest: &'a str, nodes: &[Node]) -> Result<Target<'a>, CommandRefusal> {
    let rest = rest.trim();
    if let Some(quoted) = rest.strip_prefix("@\"") {
        let (name, command) = quoted
            .split_once('"')
            .ok_or(CommandRefusal::UnclosedQuote)?;
        return Ok(explicit(name, command));
    }
    let (word, behind) = first_word(rest);
    if let Some(name) = word.strip_prefix('@') {
        return Ok(explicit(name, behind));
    }
    if word == "--" {
        return Ok(Target {
            node: None,
            command: behind,
        });
    }
    if nodes.iter().any(|node| names(node, word)) {
        return Ok(explicit(word, behind));
    }
    Ok(Target {
        node: None,
        command: rest,
    })
}

/// A node, and perhaps a `--` before the command.
fn explicit<'a>(name: &'a str, behind: &'a str) -> Target<'a> {
    let behind = behind.trim();
    let (word, rest) = first_word(behind);
    Target {
        node: Some(name),
        command: if word == "--" { rest } else { behind },
    }
}

/// The first word and what stands behind it, both without white space around.
fn first_word(text: &str) -> (&str, &str) {
    match text.split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim()),
        None => (text, ""),
    }
}

/// Whether `name` means this node.
fn names(node: &Node, name: &str) -> bool {
    let is_prefix = name.len() >= ID_PREFIX_CHARS_MIN
        && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && node.node_id.starts_with(name);
    !name.is_empty() && (is_prefix || node.node_id == name || node.display_name.trim() == name)
}

/// The node that `name` means, or that is meant when nobody is named.
///
/// A named node need not be ready, nor need the only node: whether it runs anything is the tool's decision, whose
/// refusal says more than ours could.
pub fn find_node<'a>(nodes: &'a [Node], name: Option<&str>) -> Result<&'a Node, TargetRefusal> {
    let candidates: Vec<&Node> = match name {
        Some(name) => nodes.iter().filter(|node| names(node, name)).collect(),
        None if nodes.len() == 1 => nodes.iter().collect(),
        None => nodes.iter().filter(|node| node.ready()).collect(),
    };
    match (candidates.as_slice(), name) {
        ([node], _) => Ok(node),
        ([], Some(name)) => Err(TargetRefusal::Unknown {
            name: render::printable(render::head(name, 128)),
        }),
        (shared, Some(name)) => Err(TargetRefusal::Shared {
            name: render::printable(render::head(name, 128)),
            ids: shared
                .iter()
                .take(LISTED_NODES_MAX)
                .map(|node| render::short_id(&node.node_id))
                .collect(),
        }),
        ([], None) if nodes.is_empty() => Err(TargetRefusal::NoNodes),
        ([], None) => Err(TargetRefusal::NoneReady {
            states: nodes.iter().take(LISTED_NODES_MAX).map(labelled).collect(),
        }),
        (several, None) => Err(TargetRefusal::Several {
            names: several
                .iter()
                .take(LISTED_NODES_MAX)
                .map(|node| render::node_name(&node.display_name, &node.node_id))
                .collect(),
        }),
    }
}

fn labelled(node: &Node) -> String {
    format!(
        "{}: {}",
        render::node_name(&node.display_name, &node.node_id),
        render::node_state(node)
    )
}

/// The answer to `/help`.
pub fn help() -> String {
    let mut text = String::from("I run commands on nodes. I understand:");
    for (_, usage, description) in HELP {
        text.push_str(&format!("\n{usage}: {description}"));
    }
    text.push_str(
        "\nA node is @name, @\"name with spaces\", or the exact name or id (six digits suffice) of a known node; \
         `/run -- <command>` takes all of it as the command.",
    );
    text
}

impl fmt::Display for CommandRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name } => write!(
                f,
                "I do not know the command /{name}. Type /help for those that I know."
            ),
            Self::RunWithoutCommand => f.write_str(
                "Say what to run: `/run uname -a`, or `/run @node uname -a`. If a node has the name of the program \
                 that you mean, type `/run -- <command>`.",
            ),
            Self::WhichWithoutProgram => {
                f.write_str("Say which program to look for: `/which git`, or `/which @node git`.")
            }
            Self::TooManyPrograms { got, limit } => {
                write!(f, "That names {got} programs; I look for at most {limit} at once.")
            }
            Self::ProgramName { name } => write!(
                f,
                "`{name}` is no program's name: letters, digits and . _ - + only, no paths."
            ),
            Self::UnclosedQuote => {
                f.write_str("The node's name begins with a quotation mark that is never closed.")
            }
            Self::Nul => f.write_str("The command holds a NUL character, which no program can be given."),
        }
    }
}

impl fmt::Display for TargetRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNodes => f.write_str("no node is paired"),
            Self::NoneReady { states } => {
                write!(f, "no node can run a command now: {}", states.join("; "))
            }
            Self::Several { names } => {
                write!(f, "several nodes could run this: {}", names.join(", "))
            }
            Self::Unknown { name } => write!(f, "no node is called {name}"),
            Self::Shared { name, ids } => {
                write!(f, "several nodes are called {name}: {}", ids.join(", "))
            }
        }
    }
}

impl From<TargetRefusal> for ToolRefusal {
    fn from(refusal: TargetRefusal) -> Self {
        let (code, remedy) = match &refusal {
            TargetRefusal::NoNodes => (
                "UNAVAILABLE",
                "Start one with `portcullis node run` and approve it with `portcullis devices approve` and `portcullis nodes approve`.",
            ),
            TargetRefusal::NoneReady { .. } => (
                "UNAVAILABLE",
                "`portcullis nodes status` shows what each one lacks.",
            ),
            TargetRefusal::Several { .. } => {
                ("INVALID_REQUEST", "Say which: `/run @name <command>`.")
            }
            TargetRefusal::Unknown { .. } => ("INVALID_REQUEST", "`/nodes` lists the nodes."),
            TargetRefusal::Shared { .. } => (
                "INVALID_REQUEST",
                "Name it by its id: `/run @id <command>`.",
            ),
        };
        Self::new(code, refusal.to_string()).with_remedy(remedy)
    }
}

#[cfg(test)]
mod tests;
