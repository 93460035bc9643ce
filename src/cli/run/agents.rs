//! The gateway's part in agents: where they are, and what the loop is told of what they know.

use std::sync::Arc;

use crate::config::Config;
use crate::engine::{Input, LegId, Link, Signal};
use crate::io::{Mailbox, Request};
use crate::observe::{AgentView, Board};
use crate::sync::agent::link::AgentSetup;
use crate::sync::helper::{AgentCommand, AgentNews, AgentSink};

/// The agents as the helper needs them.
pub(super) fn commands(config: &Config) -> [Option<AgentCommand>; 2] {
    LegId::ALL.map(|leg| {
        let setup = setup(config, leg)?;
        Some(AgentCommand { setup, name: config.servers[leg.index()].name.clone() })
    })
}

/// A server's agent, if it has one.
pub(in crate::cli) fn setup(config: &Config, leg: LegId) -> Option<AgentSetup> {
    let address = config.servers[leg.index()].agent.clone()?;
    Some(AgentSetup { address, key: config.agent.key.clone(), limit: config.agent.limit })
}

/// Notes what agents know for the status, and tells the engine: a service whose processes are gone
/// and that refuses is one that has exited.
pub(super) fn sink(mailbox: Mailbox, board: Arc<Board>) -> AgentSink {
    Box::new(move |news| {
        let Some(&leg) = LegId::ALL.get(news.server) else { return };
        let AgentNews { is_connected, is_gone, text, .. } = news;
        let before = board.agents.note(leg, AgentView { is_connected, is_gone, text });
        if is_gone == before.is_gone {
            return;
        }
        let signal = if is_gone { Signal::Exited } else { Signal::Running };
        // A loop that has ended needs to know nothing.
        let _ = mailbox.send(Request::Input(Input::Signal(Link::Server(leg), signal)));
    })
}
