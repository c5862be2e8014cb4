//! What a first process hears while it makes the container's root.

use crate::error::Result;
use crate::launch::protocol::{Ground, ToFirst};
use crate::sys::channel::Channel;
use std::io;

/// In the new process: waits for the ground, and for the order, and uses the time between them. `hear` is told everything
/// that comes, and answers what it makes of the order; what comes while the ground is laid is found where that looks for it.
/// `None` where whoever made this process has changed its mind.
///
/// # Errors
/// What was sent cannot be read.
pub(crate) fn told<T, B>(
    channel: &Channel,
    lay: impl FnOnce(&Ground, &mut dyn FnMut()) -> Result<T>,
    mut hear: impl FnMut(ToFirst) -> Option<B>,
) -> io::Result<Option<(Result<T>, B)>> {
    let Some((ground, _)) = channel.recv::<Ground>()? else { return Ok(None) };
    // The order, or the end of everything.
    let mut last: Option<io::Result<Option<B>>> = None;
    let mut next = || match channel.recv() {
        Ok(Some((said, _))) => hear(said).map(|order| Ok(Some(order))),
        Ok(None) => Some(Ok(None)),
        Err(error) => Some(Err(error)),
    };
    let laid = lay(&ground, &mut || {
        if last.is_none() && channel.has_something() {
            last = next();
        }
    });
    let last = loop {
        match last {
            Some(last) => break last?,
            None => last = next(),
        }
    };
    Ok(last.map(|order| (laid, order)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::launch::protocol::{Ahead, Order};
    use crate::spec::resolve::tests::spec;
    use stasis_plugin_api::plan::Helper;
    use std::cell::RefCell;
    use std::path::PathBuf;

    fn ground() -> Ground {
        Ground::of(&spec(), false, false, PathBuf::from("/mnt"))
    }

    fn order() -> ToFirst {
        ToFirst::Order(Order { spec: spec(), logs: None, fed: false, size: None }.into())
    }

    fn ahead() -> ToFirst {
        ToFirst::Ahead(Ahead { helper: Helper::default(), clocks: None, keep_capabilities: false }.into())
    }

    /// The name of an order's container; everything is written down.
    fn hearing(heard: &RefCell<Vec<&'static str>>) -> impl FnMut(ToFirst) -> Option<String> {
        |said| match said {
            ToFirst::Ahead(_) => {
                heard.borrow_mut().push("ahead");
                None
            }
            ToFirst::Order(order) => {
                heard.borrow_mut().push("order");
                Some(order.spec.name)
            }
        }
    }

    #[test]
    fn what_comes_is_heard_as_soon_as_somebody_looks() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&ground()).unwrap();
        let heard = RefCell::new(Vec::new());
        let lay = |_: &Ground, look: &mut dyn FnMut()| {
            let mut looked = Vec::new();
            for said in [None, Some(ahead()), Some(order()), None] {
                said.iter().for_each(|said| ours.send(said).unwrap());
                look();
                looked.push(heard.borrow().len());
            }
            Ok(looked)
        };
        let (laid, name) = told(&theirs, lay, hearing(&heard)).unwrap().unwrap();
        assert_eq!((laid.unwrap(), name.as_str()), (vec![0, 1, 2, 2], "job"));
        assert_eq!(*heard.borrow(), ["ahead", "order"]);
    }

    #[test]
    fn an_order_that_comes_later_is_waited_for() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&ground()).unwrap();
        [ahead(), order()].iter().for_each(|said| ours.send(said).unwrap());
        let heard = RefCell::new(Vec::new());
        let lay = |_: &Ground, _: &mut dyn FnMut()| Err::<(), _>(Error::new("no root"));
        let (laid, name) = told(&theirs, lay, hearing(&heard)).unwrap().unwrap();
        assert_eq!((laid.unwrap_err().what.as_str(), name.as_str()), ("no root", "job"));
        assert_eq!(*heard.borrow(), ["ahead", "order"]);
    }

    #[test]
    fn no_order_is_no_error_and_nonsense_is() {
        let heard = RefCell::new(Vec::new());
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&ground()).unwrap();
        ours.send(&ahead()).unwrap();
        let mut ours = Some(ours);
        let lay = |_: &Ground, look: &mut dyn FnMut()| {
            ours.take();
            (0..3).for_each(|_| look());
            Ok(())
        };
        assert!(told(&theirs, lay, hearing(&heard)).unwrap().is_none());
        assert_eq!(*heard.borrow(), ["ahead"]);
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&ground()).unwrap();
        ours.send(&7).unwrap();
        let lay = |_: &Ground, look: &mut dyn FnMut()| {
            look();
            Ok(())
        };
        assert!(told(&theirs, lay, hearing(&heard)).is_err());
    }
}
