//! The listener of a plugin that lists what is open.

use crate::chain::Chain;
use crate::reading::Envoy;
use crate::{Findings, text};

/// Examines each. `refunds`: the chains with the refund filter.
pub fn examine(envoy: &Envoy, refunds: &[Chain<'_>], findings: &mut Findings) {
    for list in Chain::all_with_list(envoy) {
        if refunds.iter().any(|refunds| refunds.shares_listener(&list)) {
            findings.risk(
                &list.place,
                "open refunds are listed where refunds are made, so that whoever may refund reads the payments and amounts of all; give \
                 the list a listener of its own",
            );
        }
        if !list.is_restricted() {
            findings.risk(
                &list.place,
                "whoever reaches it reads payments and amounts of open refunds; have it listen on 127.0.0.1, or ask for a client \
                 certificate",
            );
        }
        let vm = "/config/vm_config/vm_id";
        let same_memory =
            |other: &Chain<'_>| text(other.filter.config, vm) == text(list.filter.config, vm);
        if !refunds.is_empty() && !refunds.iter().any(same_memory) {
            findings.lacks(
                &list.place,
                "the list of open refunds has another vm_id than the refund filter, so that it is always empty; give it the same",
            );
        }
    }
}
