//! Runs the simulators until Ctrl-C, and prints where they are as one line of JSON.

use std::error::Error;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use provider_simulator::{Alpn, Credential, Options, Provider, SigningKeys, Simulators};
use serde_json::{Map, Value, json};

/// Strict stand-ins of the payment providers and the token endpoints beside them, over TLS.
#[derive(Parser)]
struct Arguments {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// The first of the ports, in the order of the registry. Any free ones, if not given.
    #[arg(long)]
    port: Option<u16>,
    /// The HTTP versions offered.
    #[arg(long, value_enum, default_value = "both")]
    http: Http,
    /// The folder for `ca.pem` and, without --bbmsl-public-key, `bbmsl-private-key.pem`. Created
    /// if missing.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// The public key registered with BBMSL for merchant 3, SPKI PEM. A new pair, if not given.
    #[arg(long)]
    bbmsl_public_key: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Http {
    H1,
    H2,
    Both,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.folder)?;
    let public_key = match &arguments.bbmsl_public_key {
        Some(file) => std::fs::read_to_string(file)?,
        None => {
            let keys = SigningKeys::generate()?;
            let file = arguments.folder.join("bbmsl-private-key.pem");
            std::fs::write(file, keys.private_key)?;
            keys.public_key
        }
    };
    let mut options = Options {
        address: arguments.address,
        alpn: match arguments.http {
            Http::H1 => Alpn::Http1,
            Http::H2 => Alpn::Http2,
            Http::Both => Alpn::Both,
        },
        ..Options::default()
    };
    let merchant = Credential::new(Provider::Bbmsl.declared().secret.account, &public_key);
    options.credentials.accept(Provider::Bbmsl, merchant);
    if let Some(first) = arguments.port {
        options.ports = Provider::ALL.into_iter().zip(first..).collect();
    }
    let simulators = Simulators::start(options).await?;
    // Nobody settles refunds here: the second look-up finds them done.
    simulators.complete_after(Some(1));

    let ca = arguments.folder.join("ca.pem");
    std::fs::write(&ca, simulators.ca_pem())?;
    let addresses: Map<String, Value> = Provider::ALL
        .into_iter()
        .map(|provider| {
            let address = simulators.address(provider).to_string();
            (provider.host().to_owned(), address.into())
        })
        .collect();
    let line = json!({ "addresses": addresses, "ca": ca });
    writeln!(std::io::stdout(), "{line}")?;

    tokio::signal::ctrl_c().await?;
    Ok(())
}
