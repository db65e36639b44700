//! The listener of a plugin that lists what is open.

use crate::chain::Chain;
use crate::reading::Envoy;
use crate::{Findings, any_member, is_set, text};

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

impl Chain<'_> {
    /// Whether not everybody on the network gets past its listener.
    fn is_restricted(&self) -> bool {
        let address = text(self.listener, "/address/socket_address/address");
        let is_local = is_set(self.listener, "/address/pipe")
            || address.starts_with("127.")
            || address == "::1";
        let asks = any_member(self.listener, &|name, value| {
            (name == "require_client_certificate" && value == true)
                || (name == "source_prefix_ranges"
                    && value.as_array().is_some_and(|list| !list.is_empty()))
        });
        is_local
            || asks
            || self
                .before
                .iter()
                .any(|filter| filter.is_authentication() && self.is_on(filter))
    }
}
