//! One thing that is asked of the store that gateways share, and how far it has come.

use std::rc::Rc;

use crate::clock::Now;
use crate::config::SharedMemory;
use crate::exchange::Answer;
use crate::guard::{Asks, Attempt, Claim, Digest, Guard, Question, Ticket, Untold};
use crate::worker::stream::Stream;

/// What is asked of the store.
pub(in crate::worker) enum Act {
    /// What a call wants of the guard.
    Ask(Asks),
    /// A payment under the names that a look has shown.
    Names(Ticket, Vec<Digest>),
    /// That a call has ended, when by the steady clock, and what it had asked; or what a look-up has found out.
    Settle(Option<Box<Question>>, Box<Answer>, i64),
    /// What the process's own table knows of a key and has not told, and the names of the payment that the key has there.
    CatchUp(Digest, Vec<Digest>),
    /// That nothing was sent by a call whose claim may have been stored.
    Release(Question),
    /// The same of the names under which its payment was claimed besides.
    ReleaseNames(Ticket, Vec<Digest>),
}

/// What came of it.
pub(in crate::worker) enum Told {
    Claim(Claim),
    Names(Result<Ticket, Claim>),
    /// The answer that is true now, and a word to be counted.
    Settled(Box<Answer>, Option<&'static str>),
    Released,
}

/// What the process's own table knows, while the store is asked.
pub(super) struct Own<'a> {
    pub(super) guard: &'a Guard<'a>,
    /// Of the errand's key, and has not told.
    pub(super) untold: Option<&'a Untold>,
}

impl Own<'_> {
    /// Adds to what the store knows of a key what this process has not told it; `but`: not what it knows of the call with this lease.
    fn tell(&self, store: &Guard<'_>, key: &Digest, but: Option<u64>, now: Now) {
        let is_other = |untold: &&Untold| but.is_none_or(|lease| !untold.is_of(lease));
        if let Some(untold) = self.untold.filter(is_other) {
            store.catch_up(self.guard, key, untold, now);
        }
    }
}

impl Act {
    /// Does it with the guard as the store is known to hold it.
    pub(super) fn run(
        &self,
        guard: &Guard<'_>,
        own: Option<&Own<'_>>,
        lease: u64,
        now: Now,
    ) -> Told {
        match self {
            Act::Ask(asks) => {
                if let (Some(key), Some(own)) = (asks.key(), own) {
                    guard.learn_key(own.guard, key, now);
                    if let Asks::Claim(question) = asks {
                        guard.learn_payment(own.guard, &question.payment);
                    }
                    own.tell(guard, key, None, now);
                }
                Told::Claim(guard.ask(asks, lease, now))
            }
            Act::Names(ticket, names) => {
                let mut ticket = ticket.clone();
                let claimed = guard.claim_more(&mut ticket, names, now);
                Told::Names(claimed.map(|()| ticket))
            }
            Act::Settle(question, answer, ended_ms) => {
                let ticket = answer.settles.as_ref().map(|settles| &settles.ticket);
                let key = answer.key().zip(own);
                // Another call of this process, which it could not tell of, may have been the refund.
                if let Some((key, own)) = key {
                    own.tell(guard, &key, ticket.map(|ticket| ticket.lease), now);
                }
                let mut settled = answer.clone();
                let word = settled.settle(guard, Some(lease), now);
                // The store may never have heard of the key, or have forgotten it, or it is another call's now. What is told
                // meanwhile stays the careful word.
                if let (Some("late"), Some(question), Some(_)) = (word, question, ticket) {
                    answer.settle_beside(guard, question, *ended_ms, now);
                }
                if let Some((key, own)) = key {
                    own.tell(guard, &key, None, now);
                }
                Told::Settled(settled, word)
            }
            Act::CatchUp(key, names) => {
                if let Some(own) = own {
                    own.tell(guard, key, None, now);
                }
                if let Some(untold) = own.and_then(|own| own.untold) {
                    guard.catch_up_payment(key, untold, names, now);
                }
                Told::Released
            }
            Act::Release(question) => {
                guard.release(question, lease, now);
                Told::Released
            }
            Act::ReleaseNames(ticket, names) => {
                guard.release_names(ticket, names, now);
                Told::Released
            }
        }
    }

    /// Its name in the metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Act::Ask(Asks::Recall(_)) => "look_up",
            Act::Ask(_) | Act::Names(..) => "claim",
            Act::Settle(..) | Act::CatchUp(..) => "settle",
            Act::Release(_) | Act::ReleaseNames(..) => "release",
        }
    }

    /// The key of which the process keeps a copy, and what its list shows of it.
    pub(super) fn copied(&self) -> Option<(Digest, Option<&str>)> {
        match self {
            Act::Ask(Asks::Claim(question)) => Some((question.key, Some(&question.note))),
            Act::Settle(_, answer, _) => Some((answer.key()?, None)),
            Act::Ask(Asks::Recall(key)) | Act::CatchUp(key, _) => Some((*key, None)),
            Act::Ask(Asks::Nothing) | Act::Names(..) | Act::Release(_) | Act::ReleaseNames(..) => {
                None
            }
        }
    }

    /// The key that it settles.
    pub(super) fn settles(&self) -> Option<Digest> {
        match self {
            Act::Settle(_, answer, _) => Some(answer.settles.as_ref()?.ticket.key),
            Act::CatchUp(key, _) => Some(*key),
            Act::Ask(_) | Act::Names(..) | Act::Release(_) | Act::ReleaseNames(..) => None,
        }
    }
}

/// All names that [`Act::name`] gives.
pub(super) const ACTS: [&str; 4] = ["claim", "look_up", "settle", "release"];

/// How an errand fails by its own key, while another one may still be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stuck {
    /// Others change it again and again.
    Contended,
    /// It holds what this version cannot read.
    Unreadable,
}

/// One thing that is asked of the store, over as many calls as it takes.
pub(in crate::worker) struct Errand {
    pub(super) act: Act,
    pub(super) attempt: Attempt,
    pub(super) told: Option<Told>,
    /// What the process's own table had not told of its key.
    pub(super) untold: Option<Untold>,
    /// A random number: that of a claim's lease.
    pub(super) lease: u64,
    /// When it began, by the steady clock. Nothing of it is written later than twice the call's time after that.
    pub(super) began_ms: i64,
    /// Not before this moment, where it is the root's.
    pub(super) due_ms: i64,
    /// When the call that is under way was made.
    pub(super) called_ms: i64,
    pub(super) calls: u32,
    /// Of the call that is under way.
    pub(super) word: u64,
    /// Whether that one only reads, since the store's clock is not known.
    pub(super) only_reads: bool,
    pub(super) has_failed: bool,
    /// Whether the call begins with the password.
    pub(super) logs_in: bool,
    pub(super) stuck: Option<Stuck>,
    /// Who waits for it; none: the root.
    pub(super) stream: Option<Rc<Stream>>,
    /// The store that it is for.
    pub(super) memory: Rc<SharedMemory>,
}

impl Errand {
    /// One for a stream, that begins with what the stream was told of the store before.
    pub(super) fn after(self, known: Option<Attempt>) -> Self {
        match known {
            Some(known) => Errand {
                attempt: known.followed_by(self.lease),
                ..self
            },
            None => self,
        }
    }

    /// What it was told of the store.
    pub(in crate::worker) fn into_known(self) -> Attempt {
        self.attempt
    }

    /// One that has not begun. `lease` is a random number.
    pub(super) fn new(
        act: Act,
        lease: u64,
        stream: Option<Rc<Stream>>,
        memory: Rc<SharedMemory>,
    ) -> Self {
        Errand {
            act,
            attempt: Attempt::new(lease),
            told: None,
            untold: None,
            lease,
            began_ms: 0,
            due_ms: 0,
            called_ms: 0,
            calls: 0,
            word: 0,
            only_reads: false,
            has_failed: false,
            logs_in: false,
            stuck: None,
            stream,
            memory,
        }
    }

    /// The number of its lease.
    pub(in crate::worker) fn lease(&self) -> u64 {
        self.lease
    }

    /// Whether the store holds what cannot be read, so that nothing can be told it of this key.
    pub(in crate::worker) fn is_unreadable(&self) -> bool {
        self.stuck == Some(Stuck::Unreadable)
    }

    /// Whether it tells how a call has ended.
    pub(in crate::worker) fn is_settlement(&self) -> bool {
        matches!(self.act, Act::Settle(..))
    }

    pub(in crate::worker) fn is_of(&self, stream: &Rc<Stream>) -> bool {
        self.stream
            .as_ref()
            .is_some_and(|waits| Rc::ptr_eq(waits, stream))
    }

    /// What is left to be done for it once its stream is gone, or has gone on without it. A claim may yet be stored: it is given
    /// back once that can no longer be.
    pub(super) fn left_over(self) -> Option<Self> {
        let over_ms = twice(&self.memory);
        let act = match self.act {
            Act::Ask(Asks::Claim(question)) => Act::Release(question),
            Act::Names(ticket, names) => Act::ReleaseNames(ticket, names),
            Act::Ask(Asks::Recall(_) | Asks::Nothing) => return None,
            // A look-up's word was told with what was known; the next one finds it again.
            Act::Settle(_, answer, _) if answer.settles.is_none() => return None,
            act => act,
        };
        let due_ms = self.began_ms.saturating_add(over_ms);
        Some(Errand { act, ..self }.of_root(due_ms))
    }

    /// The same from its beginning, for the root, and not before this moment.
    pub(super) fn of_root(self, due_ms: i64) -> Self {
        Errand {
            due_ms,
            ..Errand::new(self.act, self.lease, None, self.memory)
        }
    }
}

/// What becomes of an errand.
pub(in crate::worker) enum Progress {
    /// A call is under way.
    UnderWay,
    /// It is done.
    Done(Box<Errand>, Told),
    /// The store cannot be asked.
    Failed(Box<Errand>),
}

/// How long an errand may take, in milliseconds.
pub(super) fn twice(memory: &SharedMemory) -> i64 {
    i64::from(memory.timeout_ms).saturating_mul(2)
}
