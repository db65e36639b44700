//! The clients of `examples/`, run as their users run them: through a front that loses, cuts,
//! delays and replaces answers, killed between their steps, and held against the providers'
//! ledgers. No second refund, and none forgotten.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{FOUR, currency, plugin};
use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use futures_util::future::{Either, select};
use gateway_testbed::{Gateway, Options, cluster, project, route_mut};
use provider_simulator::orders::{find, fresh};
use provider_simulator::{Fault, Provider, Reply};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::{Notify, OnceCell};
use tokio::time::{sleep, timeout};

use Provider::{Bbmsl, Begateway, Bog, Moyasar};

/// A run gives up after a minute.
const RUN: Duration = Duration::from_secs(60);
/// What a busy machine may take beyond it to start and end a process.
const PATIENCE: Duration = Duration::from_secs(120);
/// How late a late answer is.
const LATE: Duration = Duration::from_secs(3);
/// Runs at once.
const AT_ONCE: usize = 4;

/// What the front does with a call.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Passes it on, and the answer back.
    Through,
    /// Closes the connection; the gateway sees nothing.
    Lost,
    /// Passes it on, and closes the connection in place of the answer.
    Unanswered,
    /// Passes it on, and the answer back but for its last bytes.
    Cut,
    /// Passes it on, and the answer back, late.
    Late,
    /// Never answers; the gateway sees nothing.
    Silent,
    /// Answers this itself; the gateway sees nothing.
    Says(Page),
    /// Passes it on, and answers this in the gateway's place.
    SaysAfter(Page),
    /// Kills the client; the gateway sees nothing.
    KilledBefore,
    /// Passes it on, and kills the client in place of the answer.
    KilledAfter,
}

use Way::{
    Cut, KilledAfter, KilledBefore, Late, Lost, Says, SaysAfter, Silent, Through, Unanswered,
};

/// What a proxy between client and gateway, or another gateway, answers: the status with its
/// headers, and the body.
type Page = (&'static str, &'static str);

const HTML: Page = (
    "502 Bad Gateway\r\nretry-after: 1\r\ncontent-type: text/html",
    "<h1>Sorry.</h1>",
);
const JSON: Page = (
    "200 OK\r\ncontent-type: application/json",
    r#"{"status": "failed"}"#,
);
const MOVED: Page = ("302 Found\r\nlocation: /log-in", "");
const DENIED: Page = (
    "401 Unauthorized\r\nretry-after: 600\r\ncontent-type: application/problem+json",
    r#"{"code": "access-denied", "status": 401, "outcome": "not_refunded", "retry": "same_key"}"#,
);
const DECLINED: Page = (
    "422 Unprocessable Content\r\ncontent-type: application/problem+json",
    r#"{"code": "refund-declined", "status": 422, "outcome": "not_refunded", "retry": "no"}"#,
);

fn page((head, body): Page) -> String {
    let length = body.len();
    format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// What stands between clients and gateway. It does one thing with each call, in turn, and then
/// passes all on.
struct Front {
    address: SocketAddr,
    ways: Mutex<Vec<Way>>,
    /// The keys of the calls.
    keys: Mutex<BTreeSet<String>>,
    kill: Notify,
}

impl Front {
    async fn start(gateway: SocketAddr, ways: &[Way]) -> Result<Arc<Front>> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let front = Arc::new(Front {
            address: listener.local_addr()?,
            ways: Mutex::new(ways.iter().rev().copied().collect()),
            keys: Mutex::default(),
            kill: Notify::new(),
        });
        let accepting = front.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let front = accepting.clone();
                // A client that is gone is no fault here.
                tokio::spawn(async move { front.pass(client, gateway).await });
            }
        });
        Ok(front)
    }

    /// One connection, for one call.
    async fn pass(&self, mut client: TcpStream, gateway: SocketAddr) -> Result<()> {
        let call = message(&mut client).await?;
        let call = std::str::from_utf8(&call)?;
        self.keys.lock().unwrap().insert(key(call)?.to_owned());
        let way = self.ways.lock().unwrap().pop().unwrap_or(Through);
        let answer = match way {
            Lost | Silent | Says(_) | KilledBefore => Vec::new(),
            Through | Unanswered | Cut | Late | SaysAfter(_) | KilledAfter => {
                let mut gateway = TcpStream::connect(gateway).await?;
                gateway.write_all(call.as_bytes()).await?;
                message(&mut gateway).await?
            }
        };
        match way {
            Through => client.write_all(&answer).await?,
            Lost | Unanswered => {}
            Cut => client.write_all(&answer[..answer.len() - 9]).await?,
            Late => {
                sleep(LATE).await;
                client.write_all(&answer).await?;
            }
            Says(said) | SaysAfter(said) => client.write_all(page(said).as_bytes()).await?,
            Silent => drop(client.read(&mut [0]).await),
            KilledBefore | KilledAfter => {
                self.kill.notify_one();
                // Until the client is gone.
                drop(client.read(&mut [0]).await);
            }
        }
        Ok(client.shutdown().await?)
    }
}

/// The key of a call, or of a look-up.
fn key(call: &str) -> Result<&str> {
    let of_refund = call.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("idempotency-key")
            .then_some(value)
    });
    let mut of_look_up = call.split(['?', '&', ' ']);
    of_refund
        .or_else(|| of_look_up.find_map(|part| part.strip_prefix("key=")))
        .context("a call without a key")
}

/// A whole message of HTTP/1.1 with a length, or with no body.
async fn message(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.unwrap_or("0").parse()?;
            if bytes.len() >= head.len() + 4 + length {
                return Ok(bytes);
            }
        }
        let mut part = [0; 4096];
        match stream.read(&mut part).await? {
            0 => bail!("the connection ended in a message: {text:?}"),
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
}

/// An order that is not fresh.
#[derive(Clone, Copy)]
enum Order {
    /// By its name among the simulator's.
    Known(&'static str),
    /// By its id: one of the sandbox's.
    Id(&'static str),
}

/// What becomes of one refund: the ways of its calls, a fault at its provider, and how each run
/// ends (`None`: killed).
struct Case {
    name: &'static str,
    provider: Provider,
    /// A fresh one, where there is none.
    order: Option<Order>,
    ways: &'static [Way],
    fault: Option<Fault>,
    ends: &'static [Option<i32>],
    refunds: usize,
    keys: usize,
}

/// A refund of a fresh order that is made once, under one key.
const fn case(
    name: &'static str,
    provider: Provider,
    ways: &'static [Way],
    ends: &'static [Option<i32>],
) -> Case {
    Case {
        name,
        provider,
        order: None,
        ways,
        fault: None,
        ends,
        refunds: 1,
        keys: 1,
    }
}

const REFUNDED: &[Option<i32>] = &[Some(0)];
const KILLED_THEN_REFUNDED: &[Option<i32>] = &[None, Some(0)];

fn cases() -> Vec<Case> {
    let declined = |name, ways, ends, keys| Case {
        order: Some(Order::Known("declined")),
        refunds: 0,
        keys,
        ..case(name, Begateway, ways, ends)
    };
    let sandbox = |payment, provider| Case {
        order: Some(Order::Id(payment)),
        ..case(payment, provider, &[], REFUNDED)
    };
    vec![
        sandbox("sandbox-unknown", Moyasar),
        sandbox("sandbox-unavailable", Begateway),
        // BBMSL's `sandbox-nonsense`.
        sandbox("2070000001", Bbmsl),
        case(
            "a plain refund, and once more",
            Moyasar,
            &[],
            &[Some(0), Some(0)],
        ),
        case("pending, which ends", Bog, &[], REFUNDED),
        case("the call is lost", Begateway, &[Lost, Lost], REFUNDED),
        case("the answer is lost", Moyasar, &[Unanswered], REFUNDED),
        case(
            "every other answer is lost",
            Bog,
            &[Unanswered, Through, Unanswered],
            REFUNDED,
        ),
        case("the answer is cut", Begateway, &[Cut], REFUNDED),
        case("the answer is late", Moyasar, &[Late], REFUNDED),
        case("a proxy's page", Moyasar, &[SaysAfter(HTML)], REFUNDED),
        case("a proxy's JSON", Begateway, &[SaysAfter(JSON)], REFUNDED),
        case("a proxy's redirection", Moyasar, &[Says(MOVED)], REFUNDED),
        case(
            "refused after a lost answer",
            Moyasar,
            &[Unanswered, Says(DENIED)],
            &[Some(3), Some(0)],
        ),
        case(
            "declined after a lost answer",
            Moyasar,
            &[Unanswered, Says(DECLINED)],
            REFUNDED,
        ),
        case(
            "no answer for a minute",
            Moyasar,
            &[Silent, Silent],
            &[Some(3), Some(0)],
        ),
        case(
            "killed before the call",
            Moyasar,
            &[KilledBefore],
            KILLED_THEN_REFUNDED,
        ),
        case(
            "killed after the call",
            Begateway,
            &[KilledAfter],
            KILLED_THEN_REFUNDED,
        ),
        case(
            "killed between two calls",
            Begateway,
            &[Unanswered, KilledBefore],
            KILLED_THEN_REFUNDED,
        ),
        case(
            "killed in a look-up",
            Bog,
            &[Through, KilledAfter],
            KILLED_THEN_REFUNDED,
        ),
        case("without keys, the call is lost", Bbmsl, &[Lost], REFUNDED),
        case(
            "without keys, the answer is lost",
            Bbmsl,
            &[Unanswered],
            REFUNDED,
        ),
        case(
            "without keys, killed before the call",
            Bbmsl,
            &[KilledBefore],
            KILLED_THEN_REFUNDED,
        ),
        case(
            "without keys, killed after the call",
            Bbmsl,
            &[KilledAfter],
            KILLED_THEN_REFUNDED,
        ),
        Case {
            keys: 2,
            ..case(
                "refused at first",
                Moyasar,
                &[Says(DENIED)],
                &[Some(1), Some(0)],
            )
        },
        declined("declined twice", &[], &[Some(1), Some(1)], 2),
        declined("declined, the answer is lost", &[Unanswered], &[Some(1)], 1),
        declined(
            "declined, killed after the call",
            &[KilledAfter],
            &[None, Some(1)],
            1,
        ),
    ]
}

/// What meets the next call at its provider, so these run one after the other.
fn faults() -> Vec<Case> {
    let mut wait = Reply::json(429, "{}");
    wait.headers.push((b"retry-after".to_vec(), b"1".to_vec()));
    let reply = |reply, booked| Fault::Reply { reply, booked };
    let fault = |name, provider, fault| Case {
        fault: Some(fault),
        ..case(name, provider, &[], REFUNDED)
    };
    vec![
        fault("429", Moyasar, reply(wait, false)),
        fault("401", Moyasar, reply(Reply::json(401, "{}"), false)),
        fault(
            "500, not refunded",
            Begateway,
            reply(Reply::json(500, "{}"), false),
        ),
        fault(
            "500, refunded",
            Begateway,
            reply(Reply::json(500, "{}"), true),
        ),
        fault(
            "slower than the gateway waits",
            Moyasar,
            Fault::DelayReply(LATE),
        ),
        fault(
            "unknown, cleared by a look-up",
            Bbmsl,
            Fault::Close { booked: true },
        ),
        fault("unknown, no refund", Bbmsl, Fault::Close { booked: false }),
    ]
}

struct Client {
    program: PathBuf,
    arguments: Vec<PathBuf>,
    gateway: Gateway,
    folder: tempfile::TempDir,
}

impl Client {
    async fn start(program: impl Into<PathBuf>, arguments: Vec<PathBuf>) -> Result<Client> {
        let gateway = Gateway::start(Options::changed(|config| {
            for provider in FOUR {
                let route =
                    route_mut(config, cluster(provider)).expect("every provider has a route");
                route["route"]["timeout"] = json!("2s");
            }
            plugin(config, |plugin| {
                for provider in FOUR {
                    plugin["providers"][cluster(provider)]["settle_seconds"] = json!(1);
                }
            });
        }))
        .await?;
        gateway.simulators.complete_after(Some(1));
        Ok(Client {
            program: program.into(),
            arguments,
            gateway,
            folder: tempfile::tempdir()?,
        })
    }

    fn command(&self, front: SocketAddr, keys: &Path, refund: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .arg(format!("http://{front}"))
            .args(refund)
            .env("REFUND_KEYS", keys)
            // Java reads its arguments by the locale, and a machine may have none.
            .env("LC_ALL", "C.UTF-8")
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// One run: its exit status, or none where it was killed.
    async fn run(&self, front: &Front, keys: &Path, refund: &[&str]) -> Result<Option<i32>> {
        let mut run = self.command(front.address, keys, refund).spawn()?;
        let ended = tokio::select! {
            ended = timeout(RUN + PATIENCE, run.wait()) => ended.context("a run does not end")??,
            () = front.kill.notified() => {
                run.kill().await?;
                return Ok(None);
            }
        };
        let mut text = String::new();
        let output = run.stdout.as_mut().context("it is piped")?;
        output.read_to_string(&mut text).await?;
        let answer: Value =
            serde_json::from_str(&text).with_context(|| format!("{text:?} is no JSON"))?;
        match ended.code() {
            Some(0) => ensure!(answer["status"] == "succeeded", "0 with {answer}"),
            Some(1) => ensure!(
                answer["outcome"] == "not_refunded" || answer["status"] == "failed",
                "1 with {answer}"
            ),
            _ => {}
        }
        Ok(ended.code())
    }

    /// Plays a case of the nth fresh order.
    async fn play(&self, nth: usize, case: Case) -> Result<()> {
        let simulators = &self.gateway.simulators;
        let payment = match case.order {
            Some(Order::Known(name)) => find(case.provider, name)
                .context("a known order")?
                .id
                .to_string(),
            Some(Order::Id(id)) => id.to_owned(),
            None => fresh(case.provider, nth as u64),
        };
        let front = Front::start(self.gateway.address, case.ways).await?;
        let keys = self.folder.path().join(format!("{nth}.json"));
        if let Some(fault) = case.fault {
            simulators.next_fault(case.provider, fault);
        }
        let mut ends = Vec::new();
        for _ in case.ends {
            let refund = [
                cluster(case.provider),
                &payment,
                "10.00",
                currency(case.provider),
            ];
            ends.push(self.run(&front, &keys, &refund).await?);
        }
        let ledger = simulators.ledger(case.provider);
        let refunds = ledger
            .iter()
            .filter(|entry| entry.payment == payment && !entry.rejected);
        let used = front.keys.lock().unwrap().clone();
        ensure!(ends == case.ends, "ends {ends:?} and not {:?}", case.ends);
        ensure!(
            refunds.count() == case.refunds,
            "refunds are not {}",
            case.refunds
        );
        ensure!(
            used.len() == case.keys,
            "{used:?} are not {} keys",
            case.keys
        );
        Ok(())
    }

    /// A pending refund that fails while it is looked up.
    async fn pending_fails(&self) -> Result<()> {
        let order = find(Begateway, "pending").context("a known order")?;
        let front = Front::start(self.gateway.address, &[]).await?;
        let keys = self.folder.path().join("pending.json");
        let refund = ["begateway", &order.id, "10.00", "USD"];
        let settle = async {
            while self.gateway.simulators.settle(Begateway, None, false) == 0 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let run = pin!(self.run(&front, &keys, &refund));
        // A run that ends before its refund has failed ends the wait for that, too.
        let end = match select(run, pin!(settle)).await {
            Either::Left((end, _)) => end?,
            Either::Right(((), run)) => run.await?,
        };
        ensure!(
            end == Some(1),
            "a pending refund that failed ended with {end:?}"
        );
        Ok(())
    }

    /// A second run beside the first makes no call, since it could make a key of its own.
    async fn two_at_once(&self) -> Result<()> {
        let front = Front::start(self.gateway.address, &[Silent]).await?;
        let keys = self.folder.path().join("two.json");
        let payment = fresh(Moyasar, 999);
        let refund = ["moyasar", &payment, "10.00", "SAR"];
        let mut first = self.command(front.address, &keys, &refund).spawn()?;
        while front.keys.lock().unwrap().is_empty() {
            let ended = first.try_wait()?;
            ensure!(ended.is_none(), "a run without a call: {ended:?}");
            sleep(Duration::from_millis(50)).await;
        }
        let second = self
            .command(front.address, &keys, &refund)
            .stderr(Stdio::null())
            .status()
            .await?;
        ensure!(second.code() == Some(3), "a second run ended with {second}");
        first.kill().await?;
        ensure!(
            self.run(&front, &keys, &refund).await? == Some(0),
            "the lock outlives its run"
        );
        ensure!(front.keys.lock().unwrap().len() == 1, "another key");
        Ok(())
    }

    async fn handles_every_end(mut self) -> Result<()> {
        let wrong = Command::new(&self.program)
            .args(&self.arguments)
            .stderr(Stdio::null())
            .status()
            .await?;
        ensure!(wrong.code() == Some(2), "wrong usage ended with {wrong}");
        let mut failed = Vec::new();
        let mut at_once = futures_util::stream::iter(cases().into_iter().enumerate())
            .map(|(nth, case)| {
                let client = &self;
                async move { (case.name, client.play(nth, case).await) }
            })
            .buffer_unordered(AT_ONCE);
        while let Some((name, played)) = at_once.next().await {
            failed.extend(played.err().map(|error| format!("{name}: {error:#}")));
        }
        drop(at_once);
        for (nth, case) in faults().into_iter().enumerate() {
            let name = case.name;
            let played = self.play(100 + nth, case).await;
            failed.extend(played.err().map(|error| format!("{name}: {error:#}")));
        }
        self.pending_fails().await?;
        self.two_at_once().await?;
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        self.gateway.stop().await
    }
}

fn example(name: &str) -> PathBuf {
    project().join("examples").join(name)
}

/// Builds an example with a compiler and its option for where to.
async fn build(compiler: &str, option: &str, to: &Path, source: &str) -> Result<()> {
    let mut words = compiler.split(' ');
    let mut command = Command::new(words.next().context("a compiler")?);
    command.args(words).arg(option).arg(to).arg(example(source));
    ensure!(command.status().await?.success(), "{source} does not build");
    Ok(())
}

/// Whether a language is there; where it is not, that is said, whatever becomes of the test's
/// output.
async fn is_there(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    let ended = command
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    let is_there = ended.is_ok_and(|ended| ended.success());
    if !is_there {
        let _ = writeln!(
            std::io::stderr(),
            "NOT tested: the example for {program}, which is not installed."
        );
    }
    is_there
}

/// A program, and what it is called with before the call's own arguments; none where its language is not there.
type Program = Option<(PathBuf, Vec<PathBuf>)>;

async fn script(language: &str, source: &str) -> Program {
    let is_there = is_there(language, "--version").await;
    is_there.then(|| (language.into(), vec![example(source)]))
}

/// `java Refund.java` compiles it in each run, which is most of the run. Built once, for all tests.
async fn java() -> Result<Program> {
    static BUILT: OnceCell<Program> = OnceCell::const_new();
    let built = BUILT.get_or_try_init(async || {
        if !is_there("javac", "-version").await {
            return Ok(None);
        }
        let classes = Path::new(env!("CARGO_TARGET_TMPDIR")).join("java-example");
        build("javac", "-d", &classes, "Refund.java").await?;
        // Each run is short, and starts sooner so.
        let quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"];
        let arguments = quick.map(PathBuf::from).into_iter();
        let arguments = arguments.chain([classes, "Refund".into()]).collect();
        anyhow::Ok(Some(("java".into(), arguments)))
    });
    Ok(built.await?.clone())
}

async fn go() -> Result<Program> {
    static BUILT: OnceCell<Program> = OnceCell::const_new();
    let built = BUILT.get_or_try_init(async || {
        if !is_there("go", "version").await {
            return Ok(None);
        }
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-example");
        build("go build", "-o", &program, "refund.go").await?;
        anyhow::Ok(Some((program, Vec::new())))
    });
    Ok(built.await?.clone())
}

async fn handles_every_end(program: Program) -> Result<()> {
    match program {
        Some((program, arguments)) => {
            let client = Client::start(program, arguments).await?;
            client.handles_every_end().await
        }
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_handles_every_end() -> Result<()> {
    handles_every_end(script("python3", "refund.py").await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_client_handles_every_end() -> Result<()> {
    handles_every_end(script("node", "refund.mjs").await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_java_client_handles_every_end() -> Result<()> {
    handles_every_end(java().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_client_handles_every_end() -> Result<()> {
    handles_every_end(go().await?).await
}

/// What one has begun another goes on with, by the same file of keys, however each of them writes a name there.
#[tokio::test(flavor = "multi_thread")]
async fn the_clients_share_a_file_of_keys() -> Result<()> {
    let programs = [
        script("python3", "refund.py").await,
        script("node", "refund.mjs").await,
        java().await?,
        go().await?,
    ];
    let programs: Vec<_> = programs.into_iter().flatten().collect();
    let mut client = Client::start("", Vec::new()).await?;
    for (nth, payment) in [
        "sandbox-succeeded",
        "sandbox-succeeded-\u{e9}<&>\"\\\u{1f600}",
    ]
    .into_iter()
    .enumerate()
    {
        let refund = ["begateway", payment, "10.00", "USD"];
        let front = Front::start(client.gateway.address, &[]).await?;
        let keys = client.folder.path().join(format!("all-{nth}.json"));
        // Each right after each other one: a b a c a d, b c b d, c d, a.
        let pairs = programs.iter().enumerate().flat_map(|(nth, one)| {
            let others = programs.iter().skip(nth + 1);
            others.flat_map(move |other| [one, other])
        });
        for (program, arguments) in pairs.chain(programs.first()) {
            (client.program, client.arguments) = (program.clone(), arguments.clone());
            let end = client.run(&front, &keys, &refund).await?;
            ensure!(end == Some(0), "{program:?} ended with {end:?}, {payment}");
        }
        let used = front.keys.lock().unwrap().len();
        ensure!(used == 1, "{used} keys for {payment}");
    }
    client.gateway.stop().await
}
