//! An assembler for XDP programs: instructions and jumps to named labels.
//!
//! The programs are too short to justify a compiler. The assembler covers the instructions that they use (RFC 9669);
//! the kernel verifies them. No system calls.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};

use thiserror::Error;

use crate::sys::bpf::{Instruction, KernelFunction};

// Opcodes: RFC 9669, appendix A.
const LOAD_64: u8 = 0x18;
const LOAD_BYTE: u8 = 0x71;
const LOAD_HALF: u8 = 0x69;
const LOAD_WORD: u8 = 0x61;
const LOAD_LONG: u8 = 0x79;
const STORE_HALF: u8 = 0x6b;
const STORE_WORD: u8 = 0x63;
const ATOMIC_LONG: u8 = 0xdb;
const ADD: u8 = 0x07;
const AND: u8 = 0x57;
const MOVE: u8 = 0xb7;
const COPY: u8 = 0xbf;
const TO_BIG_ENDIAN: u8 = 0xdc;
const JUMP: u8 = 0x05;
const JUMP_ABOVE: u8 = 0x2d;
const JUMP_WORD: u8 = 0x56;
const JUMP_WORD_EQUAL: u8 = 0x16;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Immediate of [`ATOMIC_LONG`]: the operation.
const ADD_ATOMICALLY: i32 = 0;

/// BPF_PSEUDO_MAP_FD, as source register: the immediate of [`LOAD_64`] is a map's descriptor.
const MAP: u8 = 1;

/// BPF_PSEUDO_KFUNC_CALL, as source register: the immediate of [`CALL`] is a kfunc's BTF id.
const KERNEL_FUNCTION: u8 = 2;

/// A register. R0: result of calls and of the program. R1 to R5: arguments, clobbered by calls; R1 holds the context at
/// the start. R6 to R9: preserved. R10: end of the 512-byte stack, read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// Condition of a jump: compares 64 bits of a register with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum If {
    /// Equal.
    Equal,
    /// Not equal.
    Different,
    /// Greater, unsigned.
    Greater,
}

impl If {
    fn code(self) -> u8 {
        match self {
            If::Equal => 0x15,
            If::Different => 0x55,
            If::Greater => 0x25,
        }
    }
}

/// Errors of assembling.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AssembleError {
    /// A jump to an undefined label.
    #[error("jump to undefined label {0}")]
    NoPlace(&'static str),
    /// A label defined twice.
    #[error("label {0} is defined twice")]
    TwoPlaces(&'static str),
    /// A jump beyond 32768 instructions back or 32767 ahead.
    #[error("jump to {to} over {distance} instructions is too far")]
    TooFar {
        /// The label.
        to: &'static str,
        /// Distance in instructions, from the one after the jump.
        distance: i64,
    },
}

/// A program under construction.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    places: HashMap<&'static str, usize>,
    /// Jump instructions and their labels.
    jumps: Vec<(usize, &'static str)>,
    twice: Option<&'static str>,
}

impl Assembler {
    /// Creates an empty program.
    pub fn new() -> Assembler {
        Assembler::default()
    }

    /// Defines a label before the next instruction.
    pub fn place(&mut self, name: &'static str) -> &mut Assembler {
        if self.places.insert(name, self.code.len()).is_some() {
            self.twice.get_or_insert(name);
        }
        self
    }

    /// `target` = 8 bits at `source` + `offset` bytes.
    pub fn load_byte(&mut self, target: Register, source: Register, offset: i16) -> &mut Assembler {
        self.add_instruction(LOAD_BYTE, target as u8, source as u8, offset, 0)
    }

    /// `target` = 16 bits at `source` + `offset` bytes.
    pub fn load_half(&mut self, target: Register, source: Register, offset: i16) -> &mut Assembler {
        self.add_instruction(LOAD_HALF, target as u8, source as u8, offset, 0)
    }

    /// `target` = 32 bits at `source` + `offset` bytes.
    pub fn load_word(&mut self, target: Register, source: Register, offset: i16) -> &mut Assembler {
        self.add_instruction(LOAD_WORD, target as u8, source as u8, offset, 0)
    }

    /// `target` = 64 bits at `source` + `offset` bytes.
    pub fn load_long(&mut self, target: Register, source: Register, offset: i16) -> &mut Assembler {
        self.add_instruction(LOAD_LONG, target as u8, source as u8, offset, 0)
    }

    /// Stores 32 bits of `source` at `target` + `offset` bytes.
    pub fn store_word(&mut self, target: Register, offset: i16, source: Register) -> &mut Assembler {
        self.add_instruction(STORE_WORD, target as u8, source as u8, offset, 0)
    }

    /// Stores 16 bits of `source` at `target` + `offset` bytes.
    pub fn store_half(&mut self, target: Register, offset: i16, source: Register) -> &mut Assembler {
        self.add_instruction(STORE_HALF, target as u8, source as u8, offset, 0)
    }

    /// Adds `source` atomically to the 64 bits at `target` + `offset` bytes.
    pub fn add_at_once(&mut self, target: Register, offset: i16, source: Register) -> &mut Assembler {
        self.add_instruction(ATOMIC_LONG, target as u8, source as u8, offset, ADD_ATOMICALLY)
    }

    /// `target` = a map. The descriptor must be open when the program is loaded, which then holds the map.
    pub fn load_map(&mut self, target: Register, map: BorrowedFd<'_>) -> &mut Assembler {
        // An instruction of double size: the second half has the upper half of the immediate.
        self.add_instruction(LOAD_64, target as u8, MAP, 0, map.as_raw_fd()).add_instruction(0, 0, 0, 0, 0)
    }

    /// `target` = a sign-extended constant.
    pub fn set(&mut self, target: Register, constant: i32) -> &mut Assembler {
        self.add_instruction(MOVE, target as u8, 0, 0, constant)
    }

    /// `target` = `source`.
    pub fn copy(&mut self, target: Register, source: Register) -> &mut Assembler {
        self.add_instruction(COPY, target as u8, source as u8, 0, 0)
    }

    /// `target` &= a constant.
    pub fn and(&mut self, target: Register, constant: i32) -> &mut Assembler {
        self.add_instruction(AND, target as u8, 0, 0, constant)
    }

    /// `target` += a constant.
    pub fn add(&mut self, target: Register, constant: i32) -> &mut Assembler {
        self.add_instruction(ADD, target as u8, 0, 0, constant)
    }

    /// R0 = result of the helper with this number (`enum bpf_func_id`); arguments R1 to R5.
    pub fn call(&mut self, helper: i32) -> &mut Assembler {
        self.add_instruction(CALL, 0, 0, 0, helper)
    }

    /// R0 = result of a kfunc ([`KernelFunction`]); arguments R1 to R5.
    ///
    /// [`KernelFunction`]: crate::sys::bpf::KernelFunction
    pub fn call_kernel(&mut self, function: KernelFunction) -> &mut Assembler {
        self.add_instruction(CALL, 0, KERNEL_FUNCTION, 0, function.btf_id())
    }

    /// Converts the lower 16 bits of `target` to network byte order and clears the others.
    pub fn to_network_order_16(&mut self, target: Register) -> &mut Assembler {
        self.add_instruction(TO_BIG_ENDIAN, target as u8, 0, 0, 16)
    }

    /// Jumps to a label.
    pub fn jump(&mut self, to: &'static str) -> &mut Assembler {
        self.jumps.push((self.code.len(), to));
        self.add_instruction(JUMP, 0, 0, 0, 0)
    }

    /// Jumps to a label if `register` compares to the constant as `is` says.
    pub fn jump_if(&mut self, register: Register, is: If, constant: i32, to: &'static str) -> &mut Assembler {
        self.jumps.push((self.code.len(), to));
        self.add_instruction(is.code(), register as u8, 0, 0, constant)
    }

    /// Jumps to a label if the lower 32 bits of `register` differ from `word`.
    pub fn jump_if_word_differs(&mut self, register: Register, word: u32, to: &'static str) -> &mut Assembler {
        self.jumps.push((self.code.len(), to));
        self.add_instruction(JUMP_WORD, register as u8, 0, 0, word.cast_signed())
    }

    /// Jumps to a label if the lower 32 bits of `register` equal `word`.
    pub fn jump_if_word_equals(&mut self, register: Register, word: u32, to: &'static str) -> &mut Assembler {
        self.jumps.push((self.code.len(), to));
        self.add_instruction(JUMP_WORD_EQUAL, register as u8, 0, 0, word.cast_signed())
    }

    /// Jumps to a label if `register` is greater than `other`, unsigned.
    pub fn jump_if_above(&mut self, register: Register, other: Register, to: &'static str) -> &mut Assembler {
        self.jumps.push((self.code.len(), to));
        self.add_instruction(JUMP_ABOVE, register as u8, other as u8, 0, 0)
    }

    /// Ends the program; it returns R0.
    pub fn exit(&mut self) -> &mut Assembler {
        self.add_instruction(EXIT, 0, 0, 0, 0)
    }

    fn add_instruction(&mut self, code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> &mut Assembler {
        self.code.push(Instruction::new(code, target, source, offset, immediate));
        self
    }

    /// Resolves the jumps and returns the program. The assembler is empty afterwards.
    pub fn finish(&mut self) -> Result<Vec<Instruction>, AssembleError> {
        let Assembler { mut code, places, jumps, twice } = std::mem::take(self);
        if let Some(name) = twice {
            return Err(AssembleError::TwoPlaces(name));
        }
        for (location, to) in jumps {
            let place = *places.get(to).ok_or(AssembleError::NoPlace(to))?;
            let distance = place as i64 - location as i64 - 1;
            code[location].offset = i16::try_from(distance).map_err(|_| AssembleError::TooFar { to, distance })?;
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

    /// Input of a generated program.
    #[derive(Debug, Clone, Copy)]
    enum Line {
        Place(usize),
        Jump(usize),
        JumpIf(usize),
        Set(i32),
    }

    /// Each label once, with jumps and instructions in any order.
    fn lines() -> impl Strategy<Value = Vec<Line>> {
        let other = prop_oneof![
            (0..NAMES.len()).prop_map(Line::Jump),
            (0..NAMES.len()).prop_map(Line::JumpIf),
            any::<i32>().prop_map(Line::Set)
        ];
        let others = prop::collection::vec(other, 0..60);
        others.prop_map(|others| (0..NAMES.len()).map(Line::Place).chain(others).collect::<Vec<_>>()).prop_shuffle()
    }

    fn write(lines: &[Line]) -> Assembler {
        let mut assembler = Assembler::new();
        for line in lines {
            match *line {
                Line::Place(name) => assembler.place(NAMES[name]),
                Line::Jump(name) => assembler.jump(NAMES[name]),
                Line::JumpIf(name) => assembler.jump_if(Register::R3, If::Equal, 5, NAMES[name]),
                Line::Set(constant) => assembler.set(Register::R4, constant),
            };
        }
        assembler
    }

    /// Number of instructions in `lines`; labels are none.
    fn instructions(lines: &[Line]) -> usize {
        lines.iter().filter(|line| !matches!(line, Line::Place(_))).count()
    }

    proptest! {
        #[test]
        fn every_jump_reaches_its_label(lines in lines()) {
            let code = write(&lines).finish().unwrap();
            prop_assert_eq!(code.len(), instructions(&lines));
            for (number, line) in lines.iter().enumerate() {
                let location = instructions(&lines[..number]);
                let to = match *line {
                    Line::Jump(name) | Line::JumpIf(name) => name,
                    Line::Set(constant) => {
                        prop_assert_eq!(code[location], Instruction::new(MOVE, 4, 0, 0, constant));
                        continue;
                    }
                    Line::Place(_) => continue,
                };
                let place = lines.iter().position(|line| matches!(line, Line::Place(name) if *name == to)).unwrap();
                let aim = location as i64 + 1 + i64::from(code[location].offset);
                prop_assert_eq!(aim, instructions(&lines[..place]) as i64);
            }
        }

        #[test]
        fn a_missing_or_duplicate_label_is_named(lines in lines(), name in 0..NAMES.len()) {
            let without: Vec<Line> =
                lines.iter().copied().filter(|line| !matches!(line, Line::Place(place) if *place == name)).collect();
            let done = write(&without).jump(NAMES[name]).finish();
            prop_assert_eq!(done, Err(AssembleError::NoPlace(NAMES[name])));
            let done = write(&lines).place(NAMES[name]).finish();
            prop_assert_eq!(done, Err(AssembleError::TwoPlaces(NAMES[name])));
        }

        #[test]
        fn an_instruction_has_its_fields(
            code: u8, target in 0u8..16, source in 0u8..16, offset: i16, immediate: i32
        ) {
            let made = Instruction::new(code, target, source, offset, immediate);
            prop_assert_eq!((made.code, made.target(), made.source()), (code, target, source));
            prop_assert_eq!((made.offset, made.immediate), (offset, immediate));
        }
    }

    #[test]
    fn a_jump_reaches_as_far_as_its_offset_and_no_further() {
        let ahead = |distance: usize| {
            let mut assembler = Assembler::new();
            assembler.jump("end");
            for _ in 0..distance {
                assembler.set(Register::R0, 0);
            }
            assembler.place("end").exit().finish().map(|code| code[0].offset)
        };
        assert_eq!(ahead(0), Ok(0));
        assert_eq!(ahead(32_767), Ok(i16::MAX));
        assert_eq!(ahead(32_768), Err(AssembleError::TooFar { to: "end", distance: 32_768 }));
        let back = |distance: usize| {
            let mut assembler = Assembler::new();
            assembler.place("start");
            for _ in 1..distance {
                assembler.set(Register::R0, 0);
            }
            assembler.jump("start").finish().map(|code| code[distance - 1].offset)
        };
        assert_eq!(back(1), Ok(-1));
        assert_eq!(back(32_768), Ok(i16::MIN));
        assert_eq!(back(32_769), Err(AssembleError::TooFar { to: "start", distance: -32_769 }));
    }

    #[test]
    fn every_instruction_is_encoded_as_in_the_standard() {
        use Register::*;
        let file = tempfile::tempfile().unwrap();
        let mut assembler = Assembler::new();
        assembler.load_word(R2, R1, 16).load_map(R1, file.as_fd()).set(R3, -2).add(R4, 7).call(51).place("here");
        assembler.jump_if(R5, If::Equal, 1, "here").jump_if(R5, If::Different, 2, "here");
        assembler.jump_if(R0, If::Greater, 3, "here").jump("here").exit();
        assembler.load_byte(R6, R7, 1).load_half(R7, R8, 2).load_long(R8, R9, 8).store_word(R10, -4, R9);
        assembler.add_at_once(R9, 16, R1).copy(R6, R1).and(R5, 1);
        assembler.jump_if_word_differs(R7, u32::MAX, "here").jump_if_above(R4, R3, "here");
        assembler.store_half(R2, 12, R7).to_network_order_16(R7).call_kernel(KernelFunction::with_btf_id(66));
        assembler.jump_if_word_equals(R0, 5, "here");
        let expected = [
            (0x61, 2, 1, 16, 0),
            (0x18, 1, 1, 0, file.as_raw_fd()),
            (0x00, 0, 0, 0, 0),
            (0xb7, 3, 0, 0, -2),
            (0x07, 4, 0, 0, 7),
            (0x85, 0, 0, 0, 51),
            (0x15, 5, 0, -1, 1),
            (0x55, 5, 0, -2, 2),
            (0x25, 0, 0, -3, 3),
            (0x05, 0, 0, -4, 0),
            (0x95, 0, 0, 0, 0),
            (0x71, 6, 7, 1, 0),
            (0x69, 7, 8, 2, 0),
            (0x79, 8, 9, 8, 0),
            (0x63, 10, 9, -4, 0),
            (0xdb, 9, 1, 16, 0),
            (0xbf, 6, 1, 0, 0),
            (0x57, 5, 0, 0, 1),
            (0x56, 7, 0, -13, -1),
            (0x2d, 4, 3, -14, 0),
            (0x6b, 2, 7, 12, 0),
            (0xdc, 7, 0, 0, 16),
            (0x85, 0, 2, 0, 66),
            (0x16, 0, 0, -18, 5),
        ];
        let code: Vec<_> = assembler.finish().unwrap();
        let code: Vec<_> = code.iter().map(|i| (i.code, i.target(), i.source(), i.offset, i.immediate)).collect();
        assert_eq!(code, expected);
        assert_eq!(assembler.finish(), Ok(vec![]), "unchanged");
    }
}
