//! What a simulated provider says of itself. All else that is known of one stands in its file.

use std::sync::Arc;

use serde_json::Value;

use crate::orders::Order;
use crate::sandbox::Sandbox;
use crate::server::Application;
use crate::{Error, Options, Received};

macro_rules! declare {
    ($($module:ident: $main:ident $($beside:ident)*,)+) => {
        $(mod $module;)+

        /// A server of a provider that is played here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Provider {
            $(
                #[doc = concat!("The one that refunds, see `", stringify!($module), ".rs`.")]
                $main,
                $(
                    #[doc = concat!("One beside it, see `", stringify!($module), ".rs`.")]
                    $beside,
                )*
            )+
        }

        impl Provider {
            /// All servers, in the order of the vendor pages.
            pub const ALL: [Provider; [$(stringify!($main), $(stringify!($beside),)*)+].len()] =
                [$(Provider::$main, $(Provider::$beside,)*)+];

            /// The servers that refund: one of each provider.
            pub const REFUNDING: [Provider; [$(stringify!($main)),+].len()] =
                [$(Provider::$main),+];

            /// What its provider says of itself.
            pub fn declared(self) -> &'static Declaration {
                match self {
                    $(Provider::$main $(| Provider::$beside)* => &$module::DECLARATION,)+
                }
            }

            /// The servers of its provider, the one that refunds first.
            pub fn servers(self) -> &'static [Provider] {
                match self {
                    $(Provider::$main $(| Provider::$beside)* => {
                        &[Provider::$main, $(Provider::$beside),*]
                    })+
                }
            }
        }
    };
}
crate::registry::for_every_provider!(declare);

impl Provider {
    /// What is said of this server.
    pub fn server(self) -> &'static Server {
        let nth = self as usize - self.servers()[0] as usize;
        &self.declared().servers[nth]
    }

    /// The vendor's real host name: in the certificate, and the only authority that is served.
    pub fn host(self) -> &'static str {
        self.server().host
    }

    /// The server of its provider that refunds.
    pub fn main(self) -> Provider {
        self.servers()[0]
    }

    /// Whether it refunds, and does not stand beside one that does.
    pub fn refunds(self) -> bool {
        self == self.main()
    }

    /// Whether the secret itself is shown to it: the gateway does not sign, and no token endpoint
    /// is shown it in its place.
    pub fn is_shown_the_secret(self) -> bool {
        self.servers().last() == Some(&self) && !self.declared().secret.signs()
    }

    /// Whether its refunds have idempotency keys.
    pub fn has_keys(self) -> bool {
        self.declared().key.is_some()
    }
}

/// What a proxy in front of a provider may answer.
pub(crate) const HTML: &str = "<!doctype html><html><body><h1>Bad Gateway</h1></body></html>";

/// One provider, with all its servers.
pub struct Declaration {
    /// As people write it, in full.
    pub title: &'static str,
    /// The same, as a heading of a table.
    pub short: &'static str,
    /// In the order of the registry.
    pub servers: &'static [Server],
    /// How the gateway proves itself.
    pub secret: Secret,
    /// Accepted without more being said: the account, and the secret.
    pub accepts: &'static [(&'static str, &'static str)],
    /// The idempotency key of a refund; none where it has none.
    pub key: Option<Key>,
    /// Whether its page says for how long it keeps keys.
    pub keeps_keys: bool,
    /// What stands before the payment's id in the path of a refund, and behind it. Where the body
    /// names the payment, the first is the whole path.
    pub path: (&'static str, &'static str),
    /// Where a call names the payment, in a few words.
    pub names: &'static str,
    /// The first word of a refund that is taken: `pending` or `succeeded`.
    pub answers: &'static str,
    /// The words after which there need not be an id of the refund.
    pub nameless: &'static [&'static str],
    /// Where it puts texts of a call.
    pub texts: &'static [Text],
    /// What it says, and what that means.
    pub replies: Replies,
    /// Whether its refunds are told apart by their ids alone.
    pub by_id_alone: bool,
    /// Whether a look-up asks for a key, and finds its refund at whatever payment.
    pub by_key_alone: bool,
    /// Whether it can prove that there is no refund.
    pub proves_absence: bool,
    /// The code of a look-up that leaves for good open how a refund has ended, and whether it does
    /// so of one that is booked, too.
    pub leaves_open: Option<(&'static str, bool)>,
    /// The currency of its fresh orders, with its decimals.
    pub currency: (&'static str, u8),
    /// Its fresh orders.
    pub fresh: Fresh,
    /// The orders that have a name.
    pub orders: &'static [Order],
    /// How a refund of a part of one ends, by its name.
    pub ends: fn(&str) -> Option<Ends>,
    /// What it makes of the payments whose name says what they meet.
    pub sandbox: Sandbox,
    /// The id of an order in the currency of the fresh ones: the demo refunds it.
    pub demo: &'static str,
    /// Its servers in the order of [`Declaration::servers`].
    pub(crate) start: fn(&Options) -> Applications,
}

/// What a provider's servers run, or why it cannot.
type Applications = Result<Vec<Arc<dyn Application>>, Error>;

/// One server.
pub struct Server {
    /// Its cluster in envoy.yaml. The one of the server that refunds is the provider's word in
    /// calls and in the configuration, too.
    pub cluster: &'static str,
    /// See [`Provider::host`].
    pub host: &'static str,
    /// Its page's reply of success. In a refund's, which is of 10.00, `%id%` and `%key%` stand for
    /// the payment's id and the refund's key.
    pub success: &'static str,
    /// Every shape of error that its page or a public client shows. Bare ones too: a proxy in front
    /// of a provider has its own.
    pub errors: &'static [&'static str],
    /// Members of its replies, and what could stand there: each makes a success doubtful.
    pub altered: &'static [(&'static str, Option<&'static str>)],
}

/// How the gateway proves itself, in envoy.yaml.
pub struct Secret {
    /// The account; empty where the secret alone tells.
    pub account: &'static str,
    /// The secret's name: of its SDS file, and in its filter state.
    pub name: &'static str,
    /// Where it stands among the provider's own in the plugin's configuration: a JSON Pointer.
    pub at: &'static str,
    /// The scheme of `authorization`; none where the secret is an RSA key that signs, and the
    /// provider has its public part.
    pub scheme: Option<&'static str>,
}

impl Secret {
    /// Whether the secret signs, and is shown to nobody.
    pub fn signs(&self) -> bool {
        self.scheme.is_none()
    }
}

/// A text of a call, in the request of a provider.
pub struct Text {
    /// Where it stands in the call: a JSON Pointer.
    pub of: &'static str,
    /// Where it stands in the request, in the signed text where there is one: a JSON Pointer.
    pub at: &'static str,
    /// What divides it from what the gateway adds; empty where it adds nothing.
    pub divider: &'static str,
    /// Whether it names the payment, so that there must be one of that name.
    pub names: bool,
}

/// What a provider says of a refund, and what that means.
pub struct Replies {
    /// The member that decides, in [`Server::success`]: its name, its word, and what follows there.
    pub word: (&'static str, &'static str, &'static str),
    /// Words of it that decline.
    pub declined: &'static [&'static str],
    /// What else declines, in a few words, and the status and body that do.
    pub declined_else: Option<(&'static str, u16, &'static str)>,
    /// Words of it that leave the end open.
    pub pending: &'static [&'static str],
    /// Words of it that say that the provider itself does not know.
    pub unsure: &'static [&'static str],
    /// Words of it that its page does not know.
    pub unlisted: &'static [&'static str],
    /// What can mean that the refund is there already, in a few words, and the statuses and bodies
    /// that can.
    pub there: Option<(&'static str, &'static [(u16, &'static str)])>,
    /// Whether a 409 alone can mean that, too.
    pub conflict_is_there: bool,
    /// Whether its page says which refusals there are, so that one is certain.
    pub lists_refusals: bool,
    /// Changes of [`Server::success`] to another amount.
    pub amounts: &'static [(&'static str, &'static str)],
    /// To another currency.
    pub currencies: &'static [(&'static str, &'static str)],
    /// To another payment.
    pub payments: &'static [(&'static str, &'static str)],
    /// The code of a success, and its message.
    pub said: (Option<&'static str>, &'static str),
    /// Where in the reply it says when the refund was made: a JSON Pointer.
    pub time: Option<&'static str>,
    /// Where a success has words for people: JSON Pointers.
    pub words: &'static [&'static str],
    /// Replies with this text wherever words can be, and whether a caller is shown it there.
    pub with: fn(&str) -> Vec<(u16, Value, bool)>,
}

/// How a refund ends.
pub enum Ends {
    /// It is made.
    Succeeded,
    /// It is taken.
    Pending,
    /// It is refused, by this status, with this code and this message.
    Refused(Refusal, u16, Option<&'static str>, Option<&'static str>),
}

/// What it means that a provider refuses.
pub enum Refusal {
    /// It will never be made.
    Rejected,
    /// The payment's own bank, or network, declined it.
    Declined,
    /// It may be there already.
    There,
    /// The gateway may not.
    Forbidden,
    /// The provider does not know itself.
    Failed,
    /// It says what its page does not know.
    Unreadable,
}

/// An idempotency key.
pub struct Key {
    /// Where it stands in a request.
    pub place: Place,
    /// The versions of UUIDs that are taken as they are.
    pub versions: &'static [usize],
}

/// Where something stands in a request.
pub enum Place {
    /// In the header of that name.
    Header(&'static str),
    /// In the member of the body.
    Member(&'static str),
}

impl Key {
    /// The key of a request, where it arrived whole.
    pub fn of(&self, request: &Received) -> Option<String> {
        match self.place {
            Place::Header(name) => {
                let key = request.headers_named(name).next()?;
                Some(String::from_utf8_lossy(key).into_owned())
            }
            Place::Member(name) => {
                let body: Value = serde_json::from_slice(&request.body).ok()?;
                Some(body.get(name)?.as_str()?.to_owned())
            }
        }
    }
}

/// Fresh orders, see [`crate::orders::fresh`].
pub struct Fresh {
    /// The id of the nth.
    pub id: fn(u64) -> String,
    /// Whether an id is of that form.
    pub is: fn(&str) -> bool,
    /// The merchant's reference of an id; empty where there is none.
    pub reference: fn(&str) -> String,
}

impl Declaration {
    /// Whether this request asks for a refund, and not how one stands.
    pub fn is_refund(&self, request: &Received) -> bool {
        let (before, after) = self.path;
        request.path.starts_with(before) && request.path.ends_with(after)
    }
}
