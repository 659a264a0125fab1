//! The peers and the routes to them, as this worker has them now, and what it has staged for them.

use super::loops::Loops;
use super::staged::StagedFrames;
use crate::dataplane::directory::PeerDirectory;
use crate::dataplane::staging::Staging;
use crate::routing::RouteTable;
use std::sync::Arc;

/// What a worker knows of the device's peers.
pub(super) struct Peers {
    pub(super) directory: Arc<PeerDirectory>,
    /// The AllowedIPs. The values are slots of [`Self::directory`].
    pub(super) routes: Arc<RouteTable>,
    pub(super) staged: StagedFrames,
    pub(super) loops: Loops,
}

impl Peers {
    /// No peers. `staging` is the room that all workers share.
    pub(super) fn new(staging: Arc<Staging>) -> Peers {
        Peers {
            directory: Arc::default(),
            routes: Arc::default(),
            staged: StagedFrames::new(staging),
            loops: Loops::default(),
        }
    }
}
