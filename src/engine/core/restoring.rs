//! What a process that ended has left: its roles, and the constants of its flows.

use super::Engine;
use crate::engine::Record;
use crate::engine::event::Event;
use crate::engine::flow::Flow;
use crate::protocol::rules::Rule;

impl Engine {
    /// Takes over what an earlier process left.
    pub(super) fn restore(&mut self, records: Vec<Record>) {
        let is_mapped = self.config.rules.http.iter().any(Rule::is_map);
        if is_mapped && !records.is_empty() {
            self.event(Event::PairsLost);
        }
        for record in records {
            match record {
                Record::Roles(roles) => self.control.restore(roles),
                Record::Flow { slot, constants } => {
                    self.data_ports.restore(&constants);
                    if let Some(translator) = &mut self.translator {
                        translator.restore(&constants);
                    }
                    let mut cx = self.cx();
                    let flow = Flow::restore(&mut cx, slot, &constants);
                    // Two records of one connection were not both written by one process.
                    let is_first = |f: &Flow| self.table.find(&f.key).is_none();
                    if let Some(mut flow) = flow.filter(is_first) {
                        self.event(Event::FlowOpened { flow: flow.key });
                        flow.tell_if_over(&mut self.cx());
                        flow.probe_ends(&mut self.cx());
                        self.table.insert(slot, flow);
                    }
                }
                Record::Free { .. } => {}
            }
        }
    }
}
