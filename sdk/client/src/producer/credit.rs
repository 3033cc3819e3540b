//! Memory that a `send` has reserved and not used yet.

use tokio::sync::Semaphore;

use crate::Error;

/// Bytes of the producer's memory that one `send` holds. What is not spent goes back when it is dropped: a `send`
/// that fails, or is cancelled, keeps nothing.
#[derive(Debug)]
pub(crate) struct Credit<'a> {
    memory: &'a Semaphore,
    bytes: usize,
}

impl<'a> Credit<'a> {
    pub(crate) fn new(memory: &'a Semaphore) -> Self {
        Self { memory, bytes: 0 }
    }

    /// Waits until it holds `bytes`. What it held goes back first: two that each hold a part of what both wait for
    /// would wait for ever.
    pub(crate) async fn wait_for(&mut self, bytes: usize) -> Result<(), Error> {
        self.give_back();
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
        match self.memory.acquire_many(wanted).await {
            Ok(permit) => permit.forget(),
            Err(_) => return Err(Error::Closed("producer")),
        }
        self.bytes = wanted as usize;
        Ok(())
    }

    /// Takes `bytes` for good, out of what it holds and of what is free; nothing where that is not enough.
    pub(crate) fn spend(&mut self, bytes: usize) -> bool {
        let missing = bytes.saturating_sub(self.bytes);
        if missing > 0 {
            let Ok(missing) = u32::try_from(missing) else { return false };
            match self.memory.try_acquire_many(missing) {
                // Given back when the batch is settled.
                Ok(permit) => permit.forget(),
                Err(_) => return false,
            }
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }

    fn give_back(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes > 0 {
            self.memory.add_permits(bytes);
        }
    }
}

impl Drop for Credit<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[tokio::test]
    async fn what_is_not_spent_goes_back() {
        let memory = Semaphore::new(100);
        let mut credit = Credit::new(&memory);
        credit.wait_for(60).await.unwrap();
        assert!(credit.spend(20));
        assert_eq!(memory.available_permits(), 40);
        assert!(!credit.spend(81), "40 held and 40 free are not enough");
        assert!(credit.spend(50), "what is held, and 10 that are free");
        assert_eq!(memory.available_permits(), 30);
        drop(credit);
        assert_eq!(memory.available_permits(), 30);
        let mut credit = Credit::new(&memory);
        credit.wait_for(30).await.unwrap();
        drop(credit);
        assert_eq!(memory.available_permits(), 30);
    }

    #[tokio::test]
    async fn a_wait_that_is_cancelled_keeps_nothing() {
        let memory = Semaphore::new(100);
        let mut credit = Credit::new(&memory);
        credit.wait_for(40).await.unwrap();
        let mut other = Credit::new(&memory);
        assert!(other.spend(50));
        {
            let mut more = pin!(credit.wait_for(80));
            assert!(more.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        drop(credit);
        assert_eq!(memory.available_permits(), 50);
    }

    #[tokio::test]
    async fn two_that_hold_a_part_and_want_more_both_get_it() {
        let memory = Semaphore::new(100);
        let (mut first, mut second) = (Credit::new(&memory), Credit::new(&memory));
        first.wait_for(50).await.unwrap();
        second.wait_for(50).await.unwrap();
        let mut context = Context::from_waker(Waker::noop());
        {
            let mut waiting = pin!(first.wait_for(80));
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            let mut others = pin!(second.wait_for(80));
            assert!(others.as_mut().poll(&mut context).is_pending());
            assert!(matches!(waiting.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
        }
        drop(first);
        assert!(second.wait_for(80).await.is_ok());
    }
}
