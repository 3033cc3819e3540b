//! Who reaches whom.

/// Links that are cut, each way by itself.
#[derive(Debug)]
pub(crate) struct Network {
    cut: Vec<Vec<bool>>,
}

impl Network {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { cut: vec![vec![false; nodes]; nodes] }
    }

    /// Whether what `from` sends reaches `to`.
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cut[from][to]
    }

    /// Whether both reach each other.
    pub(crate) fn connects(&self, one: usize, other: usize) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        if from != to {
            self.cut[from][to] = true;
        }
    }

    /// Cuts `node` off, both ways.
    pub(crate) fn isolate(&mut self, node: usize) {
        for other in 0..self.cut.len() {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.iter_mut().flatten().for_each(|cut| *cut = false);
    }
}
