//! What a copied layer stands on at the target: leased and locked as long as something is being made on it.

use crate::{
    base::{Error, ErrorKind, Guard, Result},
    chain::{Chain, lease},
    content::Tree,
    io::Host,
    store::{Known, Lease, Ledger, Purpose, Trust, is_as_before},
};
use std::sync::Arc;

/// What a copied layer stands on at the target.
#[derive(Debug)]
pub(in crate::job) struct Below {
    pub(in crate::job) chain: Chain,
    /// What was known of its topmost layer when it was chosen.
    pub(super) first_look: Option<Known>,
    /// Nobody removes it, or changes it, while something is being made that will lie on it.
    lease: Option<Lease>,
    host: Arc<dyn Host>,
}

impl Below {
    /// What is chosen, open and locked. What was known of it then is held against what it is later on.
    pub(in crate::job) fn new(host: &Arc<dyn Host>, chain: Chain) -> Self {
        let (first_look, host) = (chain.standings().first().map(|s| s.known.clone()), Arc::clone(host));
        Self { chain, first_look, lease: None, host }
    }

    /// The same, leased.
    pub(in crate::job) fn leased(host: &Arc<dyn Host>, chain: Chain, purpose: &Purpose) -> Result<Self> {
        let mut below = Self::new(host, chain);
        below.lease(purpose)?;
        Ok(below)
    }

    /// Takes a lease on it and all below it, unless it has one: whoever builds on it looks again afterwards.
    pub(in crate::job) fn lease(&mut self, purpose: &Purpose) -> Result<()> {
        if self.lease.is_none() {
            self.lease = Some(lease(&self.host, self.chain.layers(), purpose)?);
        }
        Ok(())
    }

    /// Fails with `Busy` if the layer is not what it was when it was chosen, or not where it was.
    pub(in crate::job) fn look_again(&self, ledger: &Ledger) -> Result<()> {
        let head = self.chain.head()?;
        let (named, file) = (self.host.witness(&head.path), head.image.files().into_iter().next());
        let is_there = match (named, file.map(|file| file.witness()).transpose()?) {
            (Ok(named), Some(file)) => named.same_file(&file),
            (Err(error), _) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => false,
        };
        if Guard::LookAgain.trips(!is_there) {
            return Err(Error::busy("was taken away while a layer was copied onto it").path(&head.path));
        }
        let now = ledger.look(head.image.as_ref())?;
        let Some(then) = &self.first_look else { return Ok(()) };
        let same = then.layer.frozen == now.layer.frozen && !matches!(now.trust, Trust::Doubted(_));
        if !Guard::LookAgain.trips(!same || !is_as_before(&then.now, &now.now)) {
            return Ok(());
        }
        Err(Error::busy("was changed while a layer was copied onto it").path(&head.path))
    }

    /// Returns the tree of what it shows, if that is certain and kept.
    pub(in crate::job) fn tree(&self, ledger: &Ledger) -> Result<Option<Tree>> {
        match self.first_look.as_ref().and_then(Known::proven) {
            Some(id) => ledger.tree(self.chain.head()?.image.as_ref(), &id),
            None => Ok(None),
        }
    }
}
