//! Providers whose route has led to another cluster than their own: nothing more goes by it until
//! the plugin has another configuration, or Envoy starts anew.

use super::Worker;
use super::telemetry::misrouted;
use crate::config::ProviderEntry;
use crate::host::Level;

fn record(entry: &ProviderEntry) -> String {
    format!("refund.misrouted.{}", entry.name)
}

impl Worker {
    /// Whether this provider's route has led elsewhere, in any worker, under this configuration.
    pub(super) fn is_misrouted(&self, entry: &ProviderEntry) -> bool {
        if entry.route_cluster.is_none() {
            return false;
        }
        let (stored, _) = self.host.read(&record(entry));
        let config = self.config_digest.get();
        config.is_some_and(|config| config.bytes() == stored)
    }

    /// Compares the cluster from which a reply comes with the provider's, and says whether it is
    /// another one. Before the reply Envoy still names the cluster of the caller's own route.
    pub(super) fn finds_misrouted(&self, entry: &ProviderEntry) -> bool {
        let Some(own) = &entry.route_cluster else {
            return false;
        };
        let cluster = self.host.text_property(&["xds", "cluster_name"]);
        let Some(other) = cluster.filter(|cluster| cluster != own) else {
            return false;
        };
        if let Some(config) = self.config_digest.get() {
            let _ = self.host.write(&record(entry), config.bytes(), 0);
        }
        self.count(misrouted(&entry.name));
        self.log(
            Level::Error,
            &format!(
                "{}: its route led to the cluster {other}, and not to {own}: its credentials may be in other hands. Nothing more is \
                 sent to it until the plugin's configuration changes",
                entry.name
            ),
        );
        true
    }
}
