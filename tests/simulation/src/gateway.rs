//! A gateway's process: its workers, and what they share.

use std::collections::BTreeMap;
use std::rc::Rc;

use refund_filter::headers::Headers;
use refund_filter::host::Host;
use refund_filter::worker::{Stream, Vm, Worker};

use crate::chance::Dice;
use crate::host::{Clock, Effect, ROOT, SharedMemory, SimHost};

/// Where a stream is: its process, its root there, and its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct At {
    pub life: usize,
    pub root: usize,
    pub context: u32,
}

/// A call's way through a gateway.
pub struct Passage {
    pub call: usize,
    pub stream: Rc<Stream>,
    /// What it has sent to the provider.
    pub send: Option<usize>,
    /// The head of the provider's reply was there.
    pub replying: bool,
    /// What is still to come of the call's body.
    pub rest: Vec<u8>,
}

/// One configuration of one worker.
pub struct Root {
    /// Whose it is of the process's workers.
    pub thread: usize,
    pub host: Rc<SimHost>,
    pub worker: Rc<Worker>,
    pub passages: BTreeMap<u32, Passage>,
    pub contexts: u32,
    /// The tick that counts: a period that is set anew makes the one before it void.
    pub ticks: u32,
}

/// See the module.
pub struct Process {
    pub clock: Rc<Clock>,
    memory: Rc<SharedMemory>,
    vms: Vec<Rc<Vm>>,
    pub roots: Vec<Root>,
    /// The root of each worker that takes calls.
    pub current: Vec<usize>,
}

impl Process {
    /// A process that remembers nothing yet, and has no workers.
    pub fn new(clock: Rc<Clock>, workers: usize, forgets_one_in: u32) -> Self {
        Process {
            clock,
            memory: Rc::new(SharedMemory {
                forgets_one_in,
                ..SharedMemory::default()
            }),
            vms: (0..workers).map(|_| Rc::default()).collect(),
            roots: Vec::new(),
            current: Vec::new(),
        }
    }

    /// Gives every worker this configuration. Roots that are closed look after their own streams.
    pub fn configure(&mut self, dice: &Dice, configuration: &str) -> Vec<(usize, Vec<Effect>)> {
        let mut effects = Vec::new();
        for place in std::mem::take(&mut self.current) {
            let root = &self.roots[place];
            root.host.enter(ROOT);
            root.worker.close();
            effects.push((place, root.host.effects()));
        }
        for thread in 0..self.vms.len() {
            effects.push(self.root(thread, dice, configuration));
        }
        effects
    }

    /// Gives one worker a root of this configuration.
    fn root(&mut self, thread: usize, dice: &Dice, configuration: &str) -> (usize, Vec<Effect>) {
        let host = Rc::new(SimHost::new(
            Rc::clone(&self.clock),
            Rc::clone(&self.memory),
            dice.clone(),
            configuration.as_bytes().to_vec(),
        ));
        let shared = Rc::clone(&host) as Rc<dyn Host>;
        let vm = Rc::clone(&self.vms[thread]);
        let worker = Rc::new(Worker::new(shared, ROOT, vm));
        host.enter(ROOT);
        assert!(
            worker.configure(&|_| None),
            "the configuration is not sound"
        );
        let effects = host.effects();
        let place = self.roots.len();
        self.current.insert(thread, place);
        self.roots.push(Root {
            thread,
            host,
            worker,
            passages: BTreeMap::new(),
            contexts: ROOT,
            ticks: 0,
        });
        (place, effects)
    }

    /// A worker traps: all of its streams are gone, and it begins anew. What the workers share
    /// stays. Gives the calls that are gone.
    pub fn trap(
        &mut self,
        thread: usize,
        dice: &Dice,
        configuration: &str,
    ) -> (Vec<usize>, (usize, Vec<Effect>)) {
        let its = self.roots.iter_mut().filter(|root| root.thread == thread);
        let calls = its.flat_map(Process::kill).collect();
        self.current.remove(thread);
        self.vms[thread] = Rc::default();
        (calls, self.root(thread, dice, configuration))
    }

    /// The end of one root, or of the process, without a word to its streams: what they hold of one
    /// another is taken apart, and whatever they say meanwhile is not heard. Gives their calls.
    pub fn kill(root: &mut Root) -> Vec<usize> {
        root.host.dead.set(true);
        let passages = std::mem::take(&mut root.passages);
        let calls = passages.into_iter().map(|(context, passage)| {
            root.host.enter(context);
            passage.stream.done();
            root.host.close(context);
            passage.call
        });
        let calls = calls.collect();
        root.host.enter(ROOT);
        root.worker.close();
        root.host.effects();
        calls
    }
}

/// A header map in proxy-wasm's form.
pub fn encoded(pairs: &[(&'static str, String)]) -> Vec<u8> {
    let mut headers = Headers::default();
    for (name, value) in pairs {
        headers.text(name, value.clone());
    }
    headers.encode()
}
