//! Envoy as a process: with a whole configuration of its own, or kept for one test after the other.
//!
//! Envoy compiles the module when it starts, which costs it two seconds of processor time, and most
//! tests start a gateway. So an Envoy whose test has ended is kept, with the compiled module in it,
//! and gets the next test's listeners and clusters as an operator would push them: by LDS and CDS.
//! The next gateway shares nothing with the last: its listener, clusters, memory (by `vm_id`),
//! counters and logs are new, and it comes only when nothing is left of the last.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::change_each;
use crate::{last_lines, numbers};

/// For a start, and for a change of the listeners. No test measures time.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_LOOKS: Duration = Duration::from_millis(30);
/// Each takes memory, and a little of a core's time.
const MOST_IDLE: usize = 10;

/// The listener that keeps the compiled module: V8 forgets it with the last VM that runs it.
const KEEPER: &str = "keeper";

/// How Envoy is started.
pub(crate) struct Start<'a> {
    pub(crate) config: &'a Value,
    /// For its configuration and its logs.
    pub(crate) folder: &'a Path,
    pub(crate) concurrency: u32,
    pub(crate) log_level: &'a str,
    pub(crate) environment: Vec<(String, String)>,
}

/// An Envoy that takes calls. Dropping it ends it, or keeps it for the next.
pub(crate) struct Running {
    // It is gone once it is kept for the next.
    process: Option<Process>,
    pub(crate) address: SocketAddr,
    /// Where its log begins in the file.
    log_from: u64,
    /// As what it is kept for the next.
    kind: Option<String>,
    /// Whether a test did something to the process that a next one could notice.
    touched: AtomicBool,
}

/// Where Envoys without a gateway wait for the next.
#[derive(Default)]
struct Shelf(Mutex<Vec<Idle>>);

struct Idle {
    process: Process,
    kind: String,
}

/// A process of Envoy, in a folder. Killed when it is dropped.
struct Process {
    child: Child,
    admin: SocketAddr,
    folder: PathBuf,
    _own_folder: Option<tempfile::TempDir>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Shelf {
    fn of_this_process() -> &'static Shelf {
        static SHELF: LazyLock<Shelf> = LazyLock::new(|| {
            // What is static is never dropped, and an Envoy would be left behind with its folder.
            // SAFETY: the function takes nothing, and does not panic.
            let registered = unsafe { libc::atexit(clear_the_shelf) };
            assert_eq!(registered, 0, "atexit takes no function");
            Shelf::default()
        });
        &SHELF
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of this kind that has waited longest, so that nothing of its last test is left.
    fn take(&self, kind: &str) -> Option<Process> {
        let mut idle = self.idle();
        let place = idle.iter().position(|one| one.kind == kind)?;
        Some(idle.remove(place).process)
    }
}

extern "C" fn clear_the_shelf() {
    Shelf::of_this_process().idle().clear();
}

impl Running {
    /// Starts an Envoy of its own, with the configuration as it stands.
    pub(crate) async fn start(start: Start<'_>) -> Result<Running> {
        let mut process = Process::start(&start, start.folder.to_owned(), None).await?;
        let wait = Wait::new("the listener");
        let address = loop {
            if let Some(address) = address(process.listeners().await?.get(0)) {
                break address;
            }
            wait.once(&mut process).await?;
        };
        Ok(Running {
            process: Some(process),
            address,
            log_from: 0,
            kind: None,
            touched: AtomicBool::new(false),
        })
    }

    /// Has an Envoy that waits take these listeners and clusters; where none waits, one is started.
    pub(crate) async fn take(mut start: Start<'_>) -> Result<Running> {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let name = format!("gateway-{}", TAKEN.fetch_add(1, Ordering::Relaxed));
        let mut config = start.config.clone();
        log_into(&mut config, &start.folder.join("access.log"));
        let resources = config["static_resources"].as_object_mut();
        let resources = resources.context("no static resources")?;
        let mut listeners = resources.remove("listeners").unwrap_or_default();
        let clusters = resources.remove("clusters").unwrap_or_default();
        listeners[0]["name"] = json!(name);
        let kind = format!("{} {} {config}", start.concurrency, start.log_level);

        let mut process = match Shelf::of_this_process().take(&kind) {
            Some(process) => process,
            None => {
                let folder = tempfile::Builder::new().prefix("refund-envoy-").tempdir()?;
                let path = folder.path().to_owned();
                set_up_discovery(&mut config, &path, keeper()?)?;
                start.config = &config;
                Process::start(&start, path, Some(folder)).await?
            }
        };
        let wait = Wait::new("the end of the last listener");
        while !process.is_empty().await? {
            wait.once(&mut process).await?;
        }
        post(process.admin, "/reset_counters").await?;
        let log_from = std::fs::metadata(process.folder.join("envoy.log"))?.len();
        process.discover("cds", &clusters)?;
        let expected = clusters.as_array().map_or(0, Vec::len);
        let wait = Wait::new("the clusters");
        while !process.has_clusters(expected).await? {
            wait.once(&mut process).await?;
        }
        process.discover("lds", &listeners)?;
        let wait = Wait::new("the listener");
        let address = loop {
            if let Some(address) = process.listens_at(&name, start.concurrency).await? {
                break address;
            }
            wait.once(&mut process).await?;
        };
        Ok(Running {
            process: Some(process),
            address,
            log_from,
            kind: Some(kind),
            touched: AtomicBool::new(false),
        })
    }

    fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("Envoy is gone")
    }

    /// Where its admin listens.
    pub(crate) fn admin(&self) -> Result<SocketAddr> {
        Ok(self.process()?.admin)
    }

    /// The process's id. Whoever asks for it may do something to the process.
    pub(crate) fn id(&self) -> Option<u32> {
        self.touch();
        Some(self.process.as_ref()?.child.id())
    }

    /// Sends a POST to an admin page.
    pub(crate) async fn post(&self, path: &str) -> Result<()> {
        self.touch();
        post(self.admin()?, path).await
    }

    fn touch(&self) {
        self.touched.store(true, Ordering::Relaxed);
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        let read = || {
            let log = std::fs::read(self.process.as_ref()?.folder.join("envoy.log")).ok()?;
            let own = log.get(usize::try_from(self.log_from).ok()?..)?;
            Some(String::from_utf8_lossy(own).into_owned())
        };
        read().unwrap_or_default()
    }

    /// Completes when it has ended by itself.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let process = self.process.as_mut().context("Envoy is gone")?;
        loop {
            if let Some(status) = process.child.try_wait()? {
                return Ok(status);
            }
            sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Ends it as an operator would, or takes its listeners and clusters away where it is kept for
    /// the next. All of its logs are written then.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("Envoy is gone")?;
        if self.kind.is_some() {
            process.forget()?;
            let wait = Wait::new("the end of its listener, and its logs");
            while !(process.is_empty().await? && process.has_written().await?) {
                wait.once(process).await?;
            }
            return Ok(());
        }
        // Where it cannot be asked, it ends already (Ctrl-C reaches it, too), or the wait tells.
        let _ = post(process.admin, "/quitquitquit").await;
        let ended = timeout(PATIENCE, self.ended()).await;
        let ended = ended.context("Envoy does not end")??;
        ensure!(ended.success(), "Envoy ended with {ended}");
        Ok(())
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (Some(mut process), Some(kind)) = (self.process.take(), self.kind.take()) else {
            return;
        };
        let runs = matches!(process.child.try_wait(), Ok(None));
        let intact = runs && !self.touched.load(Ordering::Relaxed) && !std::thread::panicking();
        if intact && process.forget().is_ok() {
            let mut idle = Shelf::of_this_process().idle();
            idle.push(Idle { process, kind });
            if idle.len() > MOST_IDLE {
                idle.remove(0);
            }
        }
    }
}

/// A wait for something of Envoy's.
struct Wait {
    what: &'static str,
    until: Instant,
}

impl Wait {
    fn new(what: &'static str) -> Wait {
        Wait {
            what,
            until: Instant::now() + PATIENCE,
        }
    }

    /// Waits a little; an error where it is in vain.
    async fn once(&self, process: &mut Process) -> Result<()> {
        if let Some(status) = process.child.try_wait()? {
            bail!("Envoy ended with {status}:\n{}", process.last_words());
        }
        ensure!(
            Instant::now() < self.until,
            "Envoy was not ready in time, for want of {}:\n{}",
            self.what,
            process.last_words()
        );
        sleep(BETWEEN_LOOKS).await;
        Ok(())
    }
}

impl Process {
    async fn start(
        start: &Start<'_>,
        folder: PathBuf,
        own_folder: Option<tempfile::TempDir>,
    ) -> Result<Process> {
        let config_path = folder.join("envoy.json");
        std::fs::write(&config_path, serde_json::to_vec_pretty(start.config)?)?;
        let admin_path = folder.join("admin");
        let mut command = Command::new(crate::envoy()?);
        command
            .arg("--config-path")
            .arg(&config_path)
            .arg("--admin-address-path")
            .arg(&admin_path)
            .args(["--concurrency", &start.concurrency.to_string()])
            .args(["--log-level", start.log_level])
            // Several run beside each other on one machine.
            .args(["--use-dynamic-base-id", "--drain-time-s", "1"])
            .args(["--file-flush-interval-msec", "100"])
            .envs(start.environment.iter().cloned())
            .stdin(Stdio::null())
            // One that is started again writes on.
            .stdout(
                File::options()
                    .create(true)
                    .append(true)
                    .open(folder.join("access.log"))?,
            )
            .stderr(File::create(folder.join("envoy.log"))?);
        let child = spawn(command).context("Envoy did not start")?;
        let mut process = Process {
            child,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            folder,
            _own_folder: own_folder,
        };
        let wait = Wait::new("its admin");
        while !process.is_live(&admin_path).await {
            wait.once(&mut process).await?;
        }
        Ok(process)
    }

    async fn is_live(&mut self, admin_path: &Path) -> bool {
        let text = std::fs::read_to_string(admin_path).unwrap_or_default();
        let Ok(admin) = text.trim().parse() else {
            return false;
        };
        self.admin = admin;
        let ready = get(self.admin, "/ready").await;
        ready.is_ok_and(|text| text.trim() == "LIVE")
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("envoy.log"));
        last_lines(&log.unwrap_or_default(), 20)
    }

    /// These numbers of Envoy's statistics.
    async fn counts<const N: usize>(&self, names: [&str; N]) -> Result<[u64; N]> {
        let path = format!("/stats?filter=^({})$", names.join("|"));
        let counts = numbers(&get(self.admin, &path).await?);
        Ok(names.map(|name| counts.get(name).copied().unwrap_or_default()))
    }

    /// Whether nothing is left of the last test: what is removed drains for a second.
    async fn is_empty(&self) -> Result<bool> {
        let left = self.counts([
            "listener_manager.total_listeners_active",
            "listener_manager.total_listeners_draining",
            "cluster_manager.active_clusters",
        ]);
        // The keeper.
        Ok(left.await? == [1, 0, 0])
    }

    /// Whether no line of an access log is still to be written.
    async fn has_written(&self) -> Result<bool> {
        Ok(self.counts(["filesystem.write_total_buffered"]).await? == [0])
    }

    /// Whether Envoy has taken so many clusters; an error where it refused them.
    async fn has_clusters(&self, expected: usize) -> Result<bool> {
        let counts = self.counts([
            "cluster_manager.cds.update_rejected",
            "cluster_manager.cds.update_success",
            "cluster_manager.active_clusters",
        ]);
        let [refused, taken, active] = counts.await?;
        self.refuses_nothing(refused)?;
        Ok(taken > 0 && active == expected as u64)
    }

    /// Where this listener takes connections, once every worker has it; an error where Envoy
    /// refused it.
    async fn listens_at(&self, name: &str, workers: u32) -> Result<Option<SocketAddr>> {
        let counts = self.counts([
            "listener_manager.lds.update_rejected",
            "listener_manager.lds.update_success",
            "listener_manager.listener_create_success",
        ]);
        let [refused, taken, created] = counts.await?;
        self.refuses_nothing(refused)?;
        if taken == 0 || created < u64::from(workers) {
            return Ok(None);
        }
        let listeners = self.listeners().await?;
        let mut listeners = listeners.as_array().into_iter().flatten();
        Ok(address(listeners.find(|listener| listener["name"] == name)))
    }

    fn refuses_nothing(&self, refused: u64) -> Result<()> {
        ensure!(
            refused == 0,
            "Envoy refuses the configuration:\n{}",
            self.last_words()
        );
        Ok(())
    }

    /// Takes the listeners and clusters of a test away.
    fn forget(&self) -> Result<()> {
        let nothing = json!([]);
        self.discover("lds", &nothing)?;
        self.discover("cds", &nothing)
    }

    /// Puts these resources where Envoy finds them, as an operator must: a new file, moved into
    /// place.
    fn discover(&self, what: &str, resources: &Value) -> Result<()> {
        static VERSIONS: AtomicU64 = AtomicU64::new(1);
        let kind = match what {
            "cds" => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            _ => "type.googleapis.com/envoy.config.listener.v3.Listener",
        };
        let mut resources = resources.clone();
        for resource in resources.as_array_mut().into_iter().flatten() {
            resource["@type"] = json!(kind);
        }
        let version = VERSIONS.fetch_add(1, Ordering::Relaxed).to_string();
        let file = json!({"version_info": version, "resources": resources});
        let draft = self.folder.join(format!(".{what}.part"));
        std::fs::write(&draft, file.to_string())?;
        Ok(std::fs::rename(
            draft,
            self.folder.join(what).join("discovered.json"),
        )?)
    }

    async fn listeners(&self) -> Result<Value> {
        let text = get(self.admin, "/listeners?format=json").await?;
        Ok(serde_json::from_str::<Value>(&text)?["listener_statuses"].take())
    }
}

/// Starts a process from a thread that stays: Envoy ends with the thread that has started it, and a
/// test's thread ends with its test.
fn spawn(command: Command) -> std::io::Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static STARTER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, ordered) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, started) in ordered {
                let _ = started.send(command.spawn());
            }
        });
        orders
    });
    let (started, child) = mpsc::channel();
    let gone = |_| std::io::Error::other("the thread that starts Envoy is gone");
    STARTER.send((command, started)).map_err(|_| gone(()))?;
    child.recv().map_err(|_| gone(()))?
}

fn address(listener: Option<&Value>) -> Option<SocketAddr> {
    let address = listener?.pointer("/local_address/socket_address")?;
    let port = u16::try_from(address.get("port_value")?.as_u64()?).ok()?;
    Some(([127, 0, 0, 1], port).into())
}

/// The body of an admin page.
pub(crate) async fn get(admin: SocketAddr, path: &str) -> Result<String> {
    let url = format!("http://{admin}{path}");
    Ok(reqwest::get(url).await?.text().await?)
}

async fn post(admin: SocketAddr, path: &str) -> Result<()> {
    let url = format!("http://{admin}{path}");
    reqwest::Client::new().post(url).send().await?;
    Ok(())
}

/// The process's standard output is one for all its tests, so the access log goes into a file.
fn log_into(config: &mut Value, file: &Path) {
    change_each(config, &mut |value| {
        if value
            .get("name")
            .is_some_and(|name| name == "envoy.access_loggers.stdout")
        {
            value["name"] = json!("envoy.access_loggers.file");
            let log = &mut value["typed_config"];
            log["@type"] =
                json!("type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog");
            log["path"] = json!(file);
        }
    });
}

/// A listener whose filter remembers, sends and counts nothing.
fn keeper() -> Result<Value> {
    let code = json!({"local": {"filename": crate::module()?}});
    let plugin = json!({
        "guard": {"entries": 0},
        "providers": {KEEPER: {
            "kind": "moyasar", "base_url": "https://localhost", "cluster": KEEPER,
            "api_key": {"header": "x-refund-keeper"},
        }},
    });
    Ok(json!([{
        "name": KEEPER,
        "stat_prefix": KEEPER,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": KEEPER,
                "route_config": {"virtual_hosts": []},
                "http_filters": [{
                    "name": KEEPER,
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                        "config": {
                            "name": KEEPER,
                            "allow_on_headers_stop_iteration": true,
                            "vm_config": {"vm_id": KEEPER, "runtime": "envoy.wasm.runtime.v8", "code": code},
                            "configuration": {
                                "@type": "type.googleapis.com/google.protobuf.StringValue",
                                "value": plugin.to_string(),
                            },
                        },
                    },
                }, {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }],
            },
        }]}],
    }]))
}

/// Has Envoy find its listeners and clusters in this folder; the keeper alone is there from the
/// start.
fn set_up_discovery(config: &mut Value, folder: &Path, keeper: Value) -> Result<()> {
    config["static_resources"]["listeners"] = keeper;
    let mut sources = serde_json::Map::new();
    for what in ["lds", "cds"] {
        let folder = folder.join(what);
        std::fs::create_dir(&folder)?;
        let file = folder.join("discovered.json");
        std::fs::write(
            &file,
            json!({"version_info": "0", "resources": []}).to_string(),
        )?;
        let source = json!({
            "resource_api_version": "V3",
            "path_config_source": {"path": file, "watched_directory": {"path": folder}},
        });
        sources.insert(format!("{what}_config"), source);
    }
    config["dynamic_resources"] = Value::Object(sources);
    Ok(())
}
