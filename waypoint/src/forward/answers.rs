//! The answers of a worker that clients have not taken to their end. One that is not taken for too long is given up: it must
//! not hold a connection to its endpoint, and with it a place among those that the service may have, for ever.
//!
//! hyper asks an answer for more only while its client takes what there is. Where it does not ask, although it was not told to
//! wait, the client has stopped reading or withholds the window of its stream.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::answer::State;

/// All of them.
#[derive(Default)]
pub(crate) struct Answers {
    /// Counts the rounds.
    clock: Cell<u32>,
    places: RefCell<Places>,
}

#[derive(Default)]
struct Places {
    answers: Vec<Option<Weak<RefCell<State>>>>,
    free: Vec<usize>,
}

/// Where an answer is found until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    answers: Rc<Answers>,
    index: usize,
}

impl Place {
    /// What the clock says.
    pub(super) fn now(&self) -> u32 {
        self.answers.now()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = &mut *self.answers.places.borrow_mut();
        if let Some(place) = places.answers.get_mut(self.index) {
            *place = None;
            places.free.push(self.index);
        }
    }
}

impl Answers {
    /// What the clock says.
    pub(super) fn now(&self) -> u32 {
        self.clock.get()
    }

    /// Finds an answer again.
    pub(super) fn keep_watch(this: &Rc<Self>, answer: &Rc<RefCell<State>>) -> Place {
        let places = &mut *this.places.borrow_mut();
        let answer = Some(Rc::downgrade(answer));
        let free = places.free.pop();
        let index = match free.and_then(|free| Some((free, places.answers.get_mut(free)?))) {
            Some((free, place)) => {
                *place = answer;
                free
            }
            None => {
                places.answers.push(answer);
                places.answers.len() - 1
            }
        };
        Place {
            answers: Rc::clone(this),
            index,
        }
    }

    /// Looks after them for ever; a time of zero looks after none.
    pub(crate) async fn keep(self: Rc<Self>, idle: Duration) {
        if idle.is_zero() {
            return;
        }
        let mut rounds = tokio::time::interval((idle / ROUNDS).max(SHORTEST));
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            self.clock.set(self.clock.get().saturating_add(1));
            self.give_up_untaken();
        }
    }

    fn give_up_untaken(&self) {
        let Some(then) = self.clock.get().checked_sub(ROUNDS + 1) else {
            return;
        };
        // Whoever is given up may let go of a place.
        let all: Vec<_> = {
            let places = self.places.borrow();
            let answers = places.answers.iter().flatten();
            answers.filter_map(Weak::upgrade).collect()
        };
        for answer in all {
            let mut answer = answer.borrow_mut();
            if answer.is_untaken_since(then) {
                answer.give_up();
            }
        }
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.places.borrow();
        let open = open.answers.len() - open.free.len();
        f.debug_struct("Answers").field("open", &open).finish()
    }
}

/// How often they are looked at in the time after which one is given up.
const ROUNDS: u32 = 4;
const SHORTEST: Duration = Duration::from_millis(5);
