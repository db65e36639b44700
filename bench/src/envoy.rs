//! Envoy for each lane: the project's own envoy.yaml with the access log and TLS to the providers off, all clusters at the one
//! fast upstream, and the lane's filter in the refund filter's place. Everything else is the same in all lanes.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gateway_testbed::openbao::OpenBao;
use gateway_testbed::redis::Redis;
use gateway_testbed::{
    Secrets, SecretsBy, change_plugin, filter_mut, load, set_secrets, share_memory, sign_by_transit,
};
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use crate::process::{Cores, on};

const LISTENER: &str = "/static_resources/listeners/0";
const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

/// What stands in the refund filter's place.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Nothing.
    None,
    /// The inert module; it signs once a call where it is given a key.
    Inert(Option<String>),
    /// A Lua script.
    Lua(String),
    /// An external processor, full duplex or buffered.
    ExtProc(SocketAddr, bool),
    /// Nothing, and `/v1/refunds` goes to a service.
    Service(SocketAddr),
    /// The refund filter.
    Refund(Refund),
}

/// How the refund filter is configured.
#[derive(Clone, Copy, Debug)]
pub struct Refund {
    /// Whether it remembers keys.
    pub guard: bool,
    /// Whether the route guard stands behind it, as envoy.yaml has it.
    pub route_guard: bool,
    /// Whether the secrets come as envoy.yaml has them, by SDS; else by environment variables, which cost nothing a call.
    pub by_sds: bool,
    /// Who signs: `host`, `vm` or `transit`.
    pub signer: &'static str,
    /// How many more providers are configured.
    pub more_providers: usize,
    /// Whether the configuration comes by ECDS from a file in this run's folder.
    pub pushed: bool,
    /// Whether keys are remembered in a Redis, over TLS.
    pub memory: bool,
}

impl Refund {
    /// The same job as the peers': no guard, secrets at hand.
    pub const BARE: Refund = Refund {
        guard: false,
        route_guard: true,
        by_sds: false,
        signer: "host",
        more_providers: 0,
        pushed: false,
        memory: false,
    };
}

/// What all lanes have in common.
pub struct Site<'a> {
    /// The fast upstream.
    pub upstream: SocketAddr,
    /// Where processes run.
    pub cores: Option<Cores>,
    /// The secrets.
    pub secrets: &'a Secrets,
    /// Signs in the transit lane.
    pub openbao: Option<&'a OpenBao>,
    /// Remembers in the lane with a shared memory.
    pub redis: Option<&'a Redis>,
    /// The inert module.
    pub inert: &'a Path,
}

/// A running Envoy. Killed when it is dropped.
pub struct Envoy {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its admin pages are.
    pub admin: SocketAddr,
    /// From the start of the process until it takes calls.
    pub started_in: Duration,
    folder: tempfile::TempDir,
}

impl Site<'_> {
    /// Starts Envoy with so many workers, on its own core or, with more workers than one, on all.
    pub async fn start(&self, filter: &Filter, workers: u32, log_level: &str) -> Result<Envoy> {
        let folder = tempfile::Builder::new().prefix("refund-bench-").tempdir()?;
        let config = self.config(filter, folder.path())?;
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, config.to_string())?;
        let admin_file = folder.path().join("admin");
        let cores = self.cores.as_ref().map(|cores| {
            let one = workers == 1;
            if one { &cores.envoy } else { &cores.all }.as_str()
        });
        let begin = Instant::now();
        let process = on(cores, gateway_testbed::envoy()?)
            .arg("--config-path")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&admin_file)
            .args(["--concurrency", &workers.to_string()])
            .args(["--log-level", "error"])
            .args(["--component-log-level", log_level])
            .arg("--use-dynamic-base-id")
            .envs(self.secrets.environment())
            .stdout(std::process::Stdio::null())
            .stderr(File::create(folder.path().join("envoy.log"))?)
            .spawn()
            .context("Envoy did not start")?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut envoy = Envoy {
            process,
            address: nowhere,
            admin: nowhere,
            started_in: Duration::ZERO,
            folder,
        };
        let deadline = begin + Duration::from_secs(60);
        loop {
            if let Some(status) = envoy.process.try_wait()? {
                bail!("Envoy ended with {status}:\n{}", envoy.log());
            }
            ensure!(
                Instant::now() < deadline,
                "Envoy was not ready:\n{}",
                envoy.log()
            );
            if let Some(address) = envoy.listening(&admin_file).await {
                envoy.address = address;
                envoy.started_in = begin.elapsed();
                return Ok(envoy);
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    fn config(&self, filter: &Filter, folder: &Path) -> Result<Value> {
        let mut config = load()?;
        if let Filter::Refund(refund) = filter {
            self.configure(&mut config, refund, folder)?;
        }
        *at(&mut config, "/admin/address/socket_address/port_value")? = json!(0);
        *at(
            &mut config,
            &format!("{LISTENER}/address/socket_address/port_value"),
        )? = json!(0);
        let manager = at(&mut config, MANAGER)?;
        manager
            .as_object_mut()
            .context("no manager")?
            .remove("access_log");
        let filters = list(manager, "/http_filters")?;
        let router = filters.pop().context("no router")?;
        match filter_of(filter, self.inert) {
            // The refund filter stands there already.
            None => {
                if let Filter::Refund(Refund {
                    route_guard: false, ..
                }) = filter
                {
                    filters.retain(|filter| filter["name"] != "refund_route_guard");
                }
            }
            Some(others) => *filters = others,
        }
        filters.push(router);
        self.add_routes(manager, filter)?;
        self.add_clusters(&mut config, filter)?;
        if matches!(filter, Filter::Refund(Refund { pushed: true, .. })) {
            discover(at(&mut config, MANAGER)?, folder)?;
        }
        Ok(config)
    }

    /// Configures the refund filter that stands in envoy.yaml.
    fn configure(&self, config: &mut Value, refund: &Refund, folder: &Path) -> Result<()> {
        let secrets = folder.join("secrets");
        std::fs::create_dir_all(&secrets)?;
        self.secrets.put(&secrets)?;
        let by_sds = refund.by_sds || refund.signer == "transit";
        let by = if by_sds {
            SecretsBy::FilterState
        } else {
            SecretsBy::Environment
        };
        set_secrets(config, by, &secrets)?;
        change_plugin(config, |plugin| {
            if !refund.guard {
                plugin["guard"] = json!({"entries": 0});
            }
            if refund.signer != "transit" {
                plugin["providers"]["bbmsl"]["signing"]["signer"] = json!(refund.signer);
            }
            for nth in 0..refund.more_providers {
                let another = plugin["providers"]["moyasar"].clone();
                plugin["providers"][format!("moyasar-{nth}")] = another;
            }
        })?;
        if let (true, Some(redis)) = (refund.memory, self.redis) {
            share_memory(config, &[redis.store()], &secrets)?;
        }
        if let (true, Some(openbao)) = (refund.signer == "transit", self.openbao) {
            sign_by_transit(config, openbao.address, &openbao.ca(), &secrets)?;
            let token = json!({"resources": [{
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
                "name": "openbao-token",
                "generic_secret": {"secret": {"inline_string": openbao.token}},
            }]});
            std::fs::write(secrets.join("openbao-token.yaml"), token.to_string())?;
        }
        filter_mut(config)?["vm_config"]["code"]["local"]["filename"] =
            json!(gateway_testbed::module()?);
        Ok(())
    }

    /// Behind the refund filter's own routes: ready-made requests by their path, the service, and another application.
    fn add_routes(&self, manager: &mut Value, filter: &Filter) -> Result<()> {
        let routes = list(manager, "/route_config/virtual_hosts/0/routes")?;
        let other = routes.pop().context("no routes")?;
        let to = |prefix: &str, cluster: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": "30s"}});
        routes.push(to("/v1/orders/", "moyasar"));
        routes.push(to("/hosted-checkout/", "bbmsl"));
        routes.push(to("/other", "moyasar"));
        if let Filter::Service(_) = filter {
            // Before the filter's own, which answers where there is no filter.
            routes.insert(0, to("/v1/refunds", "service"));
        }
        routes.push(other);
        Ok(())
    }

    fn add_clusters(&self, config: &mut Value, filter: &Filter) -> Result<()> {
        let clusters = list(config, "/static_resources/clusters")?;
        for cluster in clusters.iter_mut() {
            // OpenBao's is as transit.yaml has it, TLS included, since it has no other way; and the store's as memory.yaml has it.
            if cluster["name"] != "openbao" && cluster["name"] != "memory" {
                let name = cluster["name"].as_str().unwrap_or_default().to_owned();
                *cluster = cluster_at(&name, self.upstream, "http_protocol_options");
            }
        }
        match filter {
            Filter::ExtProc(address, _) => {
                clusters.push(cluster_at("ext_proc", *address, "http2_protocol_options"));
            }
            Filter::Service(address) => {
                clusters.push(cluster_at("service", *address, "http_protocol_options"));
            }
            _ => {}
        }
        Ok(())
    }
}

/// A cluster in clear text, with no limit that 256 callers meet.
fn cluster_at(name: &str, address: SocketAddr, protocol: &str) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "per_connection_buffer_limit_bytes": 1048576,
        "circuit_breakers": {"thresholds": [{"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096, "max_retries": 0}]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {
            "address": address.ip(), "port_value": address.port()}}}}]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {protocol: {}},
        }},
    })
}

/// The filters of a lane, router left out; none for the refund filter's own.
fn filter_of(filter: &Filter, inert: &Path) -> Option<Vec<Value>> {
    match filter {
        Filter::Refund(_) => None,
        Filter::None | Filter::Service(_) => Some(Vec::new()),
        Filter::Inert(key) => Some(vec![json!({
            "name": "inert",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "config": {
                    "name": "inert",
                    "allow_on_headers_stop_iteration": true,
                    "vm_config": {"vm_id": "inert", "runtime": "envoy.wasm.runtime.v8", "code": {"local": {"filename": inert}}},
                    "configuration": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": key.clone().unwrap_or_default(),
                    },
                },
            },
        })]),
        Filter::Lua(script) => Some(vec![json!({
            "name": "envoy.filters.http.lua",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
                "default_source_code": {"inline_string": script},
            },
        })]),
        Filter::ExtProc(_, full_duplex) => {
            let (body, trailers) = if *full_duplex {
                ("FULL_DUPLEX_STREAMED", "SEND")
            } else {
                ("BUFFERED", "SKIP")
            };
            Some(vec![json!({
                "name": "envoy.filters.http.ext_proc",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
                    "grpc_service": {"envoy_grpc": {"cluster_name": "ext_proc"}, "timeout": "60s"},
                    "message_timeout": "5s",
                    "mutation_rules": {"allow_all_routing": true},
                    "processing_mode": {
                        "request_header_mode": "SEND", "response_header_mode": "SEND",
                        "request_body_mode": body, "response_body_mode": body,
                        "request_trailer_mode": trailers, "response_trailer_mode": trailers,
                    },
                },
            })])
        }
    }
}

/// Has Envoy find the refund filter by ECDS, in a file in this folder.
fn discover(manager: &mut Value, folder: &Path) -> Result<()> {
    let ecds = folder.join("ecds");
    std::fs::create_dir_all(&ecds)?;
    let filter = list(manager, "/http_filters")?
        .iter_mut()
        .find(|filter| filter["name"] == "refund_filter")
        .context("no refund_filter")?;
    let found = json!({
        "name": "refund_filter",
        "config_discovery": {
            "config_source": {"resource_api_version": "V3", "path_config_source": {
                "path": ecds.join("filter.json"), "watched_directory": {"path": ecds}}},
            "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
        },
    });
    let typed_config = std::mem::replace(filter, found)["typed_config"].take();
    put_filter(&ecds, &typed_config)
}

fn put_filter(folder: &Path, typed_config: &Value) -> Result<()> {
    let resources = json!({"resources": [{
        "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        "name": "refund_filter",
        "typed_config": typed_config,
    }]});
    std::fs::write(folder.join("part"), resources.to_string())?;
    Ok(std::fs::rename(
        folder.join("part"),
        folder.join("filter.json"),
    )?)
}

impl Envoy {
    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.process.id().unwrap_or_default()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("envoy.log")).unwrap_or_default()
    }

    /// The body of an admin page.
    pub async fn admin(&self, path: &str) -> Result<String> {
        let url = format!("http://{}{path}", self.admin);
        Ok(reqwest::get(url).await?.text().await?)
    }

    /// Pushes another plugin configuration, where the lane has ECDS.
    pub fn push(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let folder = self.folder.path().join("ecds");
        let mut file: Value = serde_json::from_slice(&std::fs::read(folder.join("filter.json"))?)?;
        let filter = at(&mut file, "/resources/0/typed_config")?;
        let text = at(filter, "/config/configuration/value")?;
        let mut plugin = serde_json::from_str(text.as_str().unwrap_or_default())?;
        change(&mut plugin);
        *text = json!(plugin.to_string());
        put_filter(&folder, filter)
    }

    async fn listening(&mut self, admin_file: &Path) -> Option<SocketAddr> {
        self.admin = std::fs::read_to_string(admin_file)
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let ready = self.admin("/ready").await.ok()?;
        if ready.trim() != "LIVE" {
            return None;
        }
        let text = self.admin("/listeners?format=json").await.ok()?;
        let listeners: Value = serde_json::from_str(&text).ok()?;
        let address = listeners.pointer("/listener_statuses/0/local_address/socket_address")?;
        let port = u16::try_from(address.get("port_value")?.as_u64()?).ok()?;
        Some(([127, 0, 0, 1], port).into())
    }
}

/// The plugin configuration of the peers: envoy.yaml's own, with the secrets by environment variables and no guard.
pub fn peers_plugin() -> Result<String> {
    let mut config = load()?;
    set_secrets(&mut config, SecretsBy::Environment, Path::new("/"))?;
    change_plugin(&mut config, |plugin| {
        plugin["guard"] = json!({"entries": 0})
    })?;
    let text = filter_mut(&mut config)?["configuration"]["value"].take();
    Ok(text.as_str().context("no plugin configuration")?.to_owned())
}

fn at<'a>(config: &'a mut Value, pointer: &str) -> Result<&'a mut Value> {
    config
        .pointer_mut(pointer)
        .with_context(|| format!("envoy.yaml has nothing at {pointer}"))
}

fn list<'a>(config: &'a mut Value, pointer: &str) -> Result<&'a mut Vec<Value>> {
    at(config, pointer)?
        .as_array_mut()
        .with_context(|| format!("envoy.yaml has no list at {pointer}"))
}
