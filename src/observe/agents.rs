//! What is known of the agents beside the servers, for whoever asks how they are.

use std::sync::Mutex;

use super::lock;
use crate::engine::LegId;

/// Both servers' agents.
#[derive(Debug, Default)]
pub struct Agents([Mutex<AgentView>; 2]);

/// One agent, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentView {
    /// Whether the gateway is connected to it.
    pub is_connected: bool,
    /// Whether it knows that the service of its server is gone.
    pub is_gone: bool,
    /// How the service is, or why there is no connection.
    pub text: String,
}

impl Default for AgentView {
    fn default() -> Self {
        Self { is_connected: false, is_gone: false, text: "it was not reached yet".into() }
    }
}

impl Agents {
    /// Notes what is known now; what was known before.
    pub fn note(&self, leg: LegId, now: AgentView) -> AgentView {
        std::mem::replace(&mut *lock(&self.0[leg.index()]), now)
    }

    /// What is known.
    pub fn view(&self, leg: LegId) -> AgentView {
        lock(&self.0[leg.index()]).clone()
    }
}
