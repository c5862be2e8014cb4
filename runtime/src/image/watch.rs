//! What a long work on an image tells while it goes on. The command line shows it; a test keeps it.

use std::cell::RefCell;

/// Who is told.
pub trait Watch {
    /// Something was done.
    fn info(&self, text: &str);
    /// Something is not as the user may think.
    fn warning(&self, text: &str);
    /// How something was done.
    fn verbose(&self, text: &str);
    /// A step that takes long, of so many bytes where that is known. It ends when it is dropped.
    fn step(&self, what: &str, total: Option<u64>) -> Box<dyn Step>;
}

/// A step that takes long.
pub trait Step {
    /// So many bytes more are done.
    fn advance(&mut self, bytes: u64);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

impl Watch for Nobody {
    fn info(&self, _: &str) {}
    fn warning(&self, _: &str) {}
    fn verbose(&self, _: &str) {}
    fn step(&self, _: &str, _: Option<u64>) -> Box<dyn Step> {
        Box::new(Self)
    }
}

impl Step for Nobody {
    fn advance(&mut self, _: u64) {}
}

/// For works that tell how far they are: one step, which begins with the first word of it.
pub fn standing<'a>(watch: &'a dyn Watch, what: &'a str) -> impl Fn(u64, u64) + 'a {
    let step = RefCell::new(None);
    move |done, total| {
        let mut step = step.borrow_mut();
        let begun = || (watch.step(what, (total > 0).then_some(total)), 0);
        let (bar, before) = step.get_or_insert_with(begun);
        bar.advance(done.saturating_sub(*before));
        *before = done.max(*before);
    }
}
