//! The network between one gateway and the store that it shares with the others.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Carries connections to the store, and can be cut: then nothing arrives, either way. Dropping it
/// ends it.
pub(super) struct Link {
    /// Where the gateway finds the store.
    pub address: SocketAddr,
    is_cut: watch::Sender<bool>,
    _carrying: JoinSet<()>,
}

impl Link {
    /// One that is not cut.
    pub async fn to(store: SocketAddr) -> Result<Link> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let is_cut = watch::Sender::new(false);
        let cut = is_cut.subscribe();
        let mut carrying = JoinSet::new();
        carrying.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((gateway, _)) = listener.accept().await {
                connections.spawn(carry(gateway, store, cut.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Link {
            address,
            is_cut,
            _carrying: carrying,
        })
    }

    /// Cuts it, or joins it again.
    pub fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }
}

async fn carry(
    gateway: TcpStream,
    store: SocketAddr,
    mut is_cut: watch::Receiver<bool>,
) -> Result<()> {
    is_cut.wait_for(|is_cut| !is_cut).await?;
    let (from_store, to_store) = TcpStream::connect(store).await?.into_split();
    let (from_gateway, to_gateway) = gateway.into_split();
    tokio::try_join!(
        pump(from_gateway, to_store, is_cut.clone()),
        pump(from_store, to_gateway, is_cut),
    )?;
    Ok(())
}

/// What was on its way when the link was cut arrives when it is joined again, as TCP has it.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut is_cut: watch::Receiver<bool>,
) -> Result<()> {
    let mut part = vec![0; 16_384];
    loop {
        let read = from.read(&mut part).await?;
        is_cut.wait_for(|is_cut| !is_cut).await?;
        if read == 0 {
            return Ok(to.shutdown().await?);
        }
        to.write_all(&part[..read]).await?;
    }
}
