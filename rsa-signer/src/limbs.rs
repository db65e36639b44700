//! Numbers of a fixed length, and multiplication modulo an odd one (Montgomery), without a branch or an address that depends
//! on what they are.
//!
//! A number is a slice of limbs of [`WIDTH`] bits, the low one first, each below 2^[`WIDTH`]. What a product adds up to is kept
//! in columns of 64 bits that carry to each other once at the end: WebAssembly has no carry flag and no product of 128 bits,
//! and what a carry after each of the million products of a signature would cost is more than what the products cost.
//!
//! Why no column overflows: into one fall at most `length` products of two limbs from a multiplication, as many from its
//! reduction, and one carry of less than 2^38. A squaring takes a product twice in place of two equal ones. So the sum is below
//! 2 * length * 2^54 + 2^38, and for every length up to [`MOST`] that is below 2^64.

use std::hint::black_box;
use std::iter::zip;

use zeroize::Zeroizing;

/// Bits in one limb.
pub const WIDTH: usize = 27;
/// The greatest limb.
const MASK: u32 = (1 << WIDTH) - 1;
/// The most limbs of a number that is multiplied: far above the 152 of a modulus of 4096 bits.
const MOST: usize = 480;

/// A number that is wiped when it goes.
pub type Number = Zeroizing<Vec<u32>>;
/// Sums of products, the low column first: room for the product of two numbers.
pub type Columns = Zeroizing<Vec<u64>>;

/// The limbs of numbers below a modulus of so many bits.
///
/// They hold four times the modulus: so what comes out of one multiplication, below twice the modulus, goes into the next as it
/// is (C. D. Walter, "Montgomery exponentiation needs no final subtractions"). It is even, since two rows are multiplied at once.
pub fn length_for(bits: usize) -> Option<usize> {
    let length = bits
        .checked_add(2)?
        .div_ceil(WIDTH)
        .checked_next_multiple_of(2)?;
    (length <= MOST).then_some(length)
}

/// Zero in so many limbs.
pub fn zero(length: usize) -> Number {
    Zeroizing::new(vec![0; length])
}

/// A small number (below 2^[`WIDTH`]) in so many limbs.
pub fn small(value: u32, length: usize) -> Number {
    let mut number = zero(length);
    if let Some(low) = number.first_mut() {
        *low = value & MASK;
    }
    number
}

/// Columns for the product of two numbers of so many limbs.
pub fn columns(length: usize) -> Columns {
    Zeroizing::new(vec![0; length.saturating_mul(2)])
}

/// A number from its bytes, the high one first; none where it does not fit.
#[inline(never)]
pub fn from_bytes(bytes: &[u8], length: usize) -> Option<Number> {
    if bit_length(bytes) > length.checked_mul(WIDTH)? {
        return None;
    }
    let mut number = zero(length);
    let mut bytes = bytes.iter().rev();
    let (mut bits, mut count) = (0u64, 0usize);
    for limb in number.iter_mut() {
        while count < WIDTH {
            let byte = u64::from(bytes.next().copied().unwrap_or_default());
            bits |= byte.wrapping_shl(u32::try_from(count).ok()?);
            count = count.wrapping_add(8);
        }
        *limb = low_limb(bits);
        bits >>= WIDTH;
        count = count.wrapping_sub(WIDTH);
    }
    Some(number)
}

/// A number's low bytes, so many of them, the high one first.
#[inline(never)]
pub fn to_bytes(number: &[u32], size: usize) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(vec![0; size]);
    let mut limbs = number.iter();
    let (mut bits, mut count) = (0u64, 0usize);
    for byte in bytes.iter_mut().rev() {
        if count < 8 {
            let limb = u64::from(limbs.next().copied().unwrap_or_default());
            bits |= limb << (count & 7);
            count = count.wrapping_add(WIDTH);
        }
        *byte = bits.to_le_bytes().first().copied().unwrap_or_default();
        bits >>= 8;
        count = count.wrapping_sub(8);
    }
    bytes
}

/// The bits of a number in bytes, the high one first, without leading zeros.
pub fn bit_length(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some((0, after)) = rest.split_first() {
        rest = after;
    }
    let unused = rest.first().map_or(0, |byte| byte.leading_zeros());
    rest.len()
        .saturating_mul(8)
        .saturating_sub(usize::try_from(unused).unwrap_or_default())
}

fn low_limb(column: u64) -> u32 {
    u32::try_from(column & u64::from(MASK)).unwrap_or_default()
}

/// 1 where the number is below the other, of the same length, else 0.
fn borrow(number: &[u32], other: &[u32]) -> u32 {
    // Limbs are below 2^31, so a difference has its high bit set just where it is below zero.
    zip(number, other).fold(0, |borrow, (limb, other)| {
        limb.wrapping_sub(*other).wrapping_sub(borrow) >> 31
    })
}

/// Whether the number is below the other, of the same length.
pub fn is_below(number: &[u32], other: &[u32]) -> bool {
    borrow(number, other) == 1
}

/// Subtracts `other` where the number is not below it. Both have the same length.
#[inline(never)]
pub fn subtract_once(number: &mut [u32], other: &[u32]) {
    // Opaque, so that no compiler makes a branch of it.
    let keep = black_box(borrow(number, other).wrapping_sub(1));
    let mut borrow = 0;
    for (limb, other) in zip(number, other) {
        let difference = limb.wrapping_sub(other & keep).wrapping_sub(borrow);
        *limb = difference & MASK;
        borrow = difference >> 31;
    }
}

/// `number = 2 * number + bit`, which must fit.
#[inline(never)]
fn double(number: &mut [u32], bit: u32) {
    let mut carry = bit;
    for limb in number {
        let sum = limb.wrapping_shl(1) | carry;
        *limb = sum & MASK;
        carry = sum >> WIDTH;
    }
}

/// `number = number + other`, which must fit.
fn add(number: &mut [u32], other: &[u32]) {
    let mut carry = 0;
    for (limb, other) in zip(number, other) {
        let sum = limb.wrapping_add(*other).wrapping_add(carry);
        *limb = sum & MASK;
        carry = sum >> WIDTH;
    }
}

/// A number (bytes, the high one first) modulo any `modulus` above 1 that leaves a bit free; slow, one bit at a time.
#[inline(never)]
pub fn remainder(bytes: &[u8], modulus: &[u32]) -> Number {
    let mut rest = zero(modulus.len());
    for byte in bytes {
        for place in (0..8).rev() {
            double(&mut rest, u32::from(byte >> place & 1));
            subtract_once(&mut rest, modulus);
        }
    }
    rest
}

/// `number * factor` modulo any `modulus` above 1 that leaves a bit free, for a number below it. The factor is no secret.
pub fn times(number: &[u32], factor: u64, modulus: &[u32]) -> Number {
    let mut product = zero(modulus.len());
    for place in (0..u64::BITS).rev() {
        double(&mut product, 0);
        subtract_once(&mut product, modulus);
        if factor >> place & 1 == 1 {
            add(&mut product, number);
            subtract_once(&mut product, modulus);
        }
    }
    product
}

/// `columns += (x0 + x1 * 2^WIDTH) * y`. There must be one column more than `y` has limbs.
///
/// Two rows at once, since each column is loaded and stored once for both; four columns at once, since a step of the loop costs
/// as much as a product. Nine tenths of a signature's time is here.
fn add_rows(columns: &mut [u64], x0: u32, x1: u32, y: &[u32]) {
    let (x0, x1) = (u64::from(x0), u64::from(x1));
    let add = |column: &mut u64, limb: u32, before: u64| {
        let limb = u64::from(limb);
        *column = column
            .wrapping_add(x0.wrapping_mul(limb))
            .wrapping_add(x1.wrapping_mul(before));
        limb
    };
    let (columns, above) = columns.split_at_mut(y.len().min(columns.len()));
    let (fours, columns) = columns.as_chunks_mut::<4>();
    let (limbs, y) = y.as_chunks::<4>();
    let mut before = 0;
    for ([c0, c1, c2, c3], [y0, y1, y2, y3]) in zip(fours, limbs) {
        before = add(c0, *y0, before);
        before = add(c1, *y1, before);
        before = add(c2, *y2, before);
        before = add(c3, *y3, before);
    }
    for (column, limb) in zip(columns, y) {
        before = add(column, *limb, before);
    }
    if let Some(column) = above.first_mut() {
        *column = column.wrapping_add(x1.wrapping_mul(before));
    }
}

/// `columns = x * y`, for two numbers of the same even length.
pub fn multiply(columns: &mut [u64], x: &[u32], y: &[u32]) {
    columns.fill(0);
    let mut rest = columns;
    for [x0, x1] in x.as_chunks::<2>().0 {
        add_rows(rest, *x0, *x1, y);
        rest = rest.get_mut(2..).unwrap_or_default();
    }
}

/// `columns = x * x`, for a number of even length.
fn square(columns: &mut [u64], x: &[u32]) {
    columns.fill(0);
    let mut rest = columns;
    let mut limbs = x;
    while let Some(([x0, x1], higher)) = limbs.split_first_chunk() {
        let (wide0, wide1) = (u64::from(*x0), u64::from(*x1));
        if let Some([c0, c1, c2]) = rest.first_chunk_mut() {
            *c0 = c0.wrapping_add(wide0.wrapping_mul(wide0));
            *c1 = c1.wrapping_add(wide0.wrapping_mul(wide1) << 1);
            *c2 = c2.wrapping_add(wide1.wrapping_mul(wide1));
        }
        let higher_columns = rest.get_mut(2..).unwrap_or_default();
        add_rows(higher_columns, x0 << 1, x1 << 1, higher);
        rest = higher_columns.get_mut(2..).unwrap_or_default();
        limbs = higher;
    }
}

/// The number that columns stand for, which must fit.
pub fn carry(columns: &[u64], number: &mut [u32]) {
    let mut carry = 0;
    for (limb, column) in zip(number, columns) {
        let sum = column.wrapping_add(carry);
        *limb = low_limb(sum);
        carry = sum >> WIDTH;
    }
}

/// An odd modulus above 1, and what is computed from it once. R below is 2^([`WIDTH`] * its length).
pub struct Modulus {
    limbs: Number,
    /// -1/modulus modulo 2^WIDTH.
    inverse: u32,
    /// R modulo the modulus: 1 in Montgomery's form.
    one: Number,
    /// R^2 modulo the modulus: it takes a number into Montgomery's form.
    square: Number,
}

impl Modulus {
    /// From its bytes, the high one first, in numbers of `length` limbs; none for one that is even, 1, 0, or too long for them.
    pub fn new(bytes: &[u8], length: usize) -> Option<Self> {
        let bits = bit_length(bytes);
        if bits < 2 || length_for(bits)? > length || length > MOST {
            return None;
        }
        let limbs = from_bytes(bytes, length)?;
        let low = *limbs.first()?;
        if low & 1 == 0 {
            return None;
        }
        // Newton's iteration: an odd number is its own inverse to 3 bits, and each step doubles them.
        let inverse = (0..4).fold(low, |inverse, _| {
            inverse.wrapping_mul(2u32.wrapping_sub(low.wrapping_mul(inverse)))
        });
        // The highest power of two below the modulus, doubled until it is R.
        let highest = bits.checked_sub(1)?;
        let mut one = zero(length);
        if let Some(limb) = one.get_mut(highest / WIDTH) {
            *limb = 1u32.wrapping_shl(u32::try_from(highest % WIDTH).ok()?);
        }
        let size = length.checked_mul(WIDTH)?;
        for _ in highest..size {
            double(&mut one, 0);
            subtract_once(&mut one, &limbs);
        }
        let mut modulus = Modulus {
            square: one.clone(),
            inverse: inverse.wrapping_neg() & MASK,
            one,
            limbs,
        };
        // 2^size * R, by the bits of `size`: a squaring in Montgomery's form makes 2^k * R into 2^2k * R.
        let mut square = modulus.square.clone();
        let mut columns = columns(length);
        for place in (0..usize::BITS).rev() {
            modulus.square(&mut square, &mut columns);
            subtract_once(&mut square, &modulus.limbs);
            if size.wrapping_shr(place) & 1 == 1 {
                double(&mut square, 0);
                subtract_once(&mut square, &modulus.limbs);
            }
        }
        modulus.square = square;
        Some(modulus)
    }

    /// The modulus itself.
    pub fn limbs(&self) -> &[u32] {
        &self.limbs
    }

    /// `x = x * y / R`, below twice the modulus where `x * y` is below R times the modulus: so for two numbers below twice the
    /// modulus, and for one below R and one below the modulus.
    pub fn multiply(&self, x: &mut [u32], y: &[u32], columns: &mut [u64]) {
        multiply(columns, x, y);
        self.reduce(columns, x);
    }

    /// `x = x * x / R`, below twice the modulus for an `x` that is.
    pub fn square(&self, x: &mut [u32], columns: &mut [u64]) {
        square(columns, x);
        self.reduce(columns, x);
    }

    /// `x = x * R`, below twice the modulus, for any `x` below R.
    #[inline(never)]
    pub fn enter(&self, x: &mut [u32], columns: &mut [u64]) {
        self.multiply(x, &self.square, columns);
    }

    /// `x = x / R`, below the modulus, for any `x` below R.
    #[inline(never)]
    pub fn leave(&self, x: &mut [u32], columns: &mut [u64]) {
        columns.fill(0);
        for (column, limb) in zip(columns.iter_mut(), x.iter()) {
            *column = u64::from(*limb);
        }
        self.reduce(columns, x);
        subtract_once(x, &self.limbs);
    }

    /// `number = columns / R`, below twice the modulus, where the columns stand for less than R times the modulus. They are
    /// spent.
    pub fn reduce(&self, columns: &mut [u64], number: &mut [u32]) {
        let n0 = self.limbs.first().copied().unwrap_or_default();
        let n1 = self.limbs.get(1).copied().unwrap_or_default();
        let (n0, n1) = (u64::from(n0), u64::from(n1));
        let mut rest = columns;
        for _ in self.limbs.as_chunks::<2>().0 {
            // The multiple of the modulus that clears the two lowest columns.
            let (m0, m1) = match rest.first_chunk() {
                Some([c0, c1]) => {
                    let m0 = low_limb(*c0).wrapping_mul(self.inverse) & MASK;
                    let wide = u64::from(m0);
                    let second = c0.wrapping_add(wide.wrapping_mul(n0)) >> WIDTH;
                    let second = second.wrapping_add(*c1).wrapping_add(wide.wrapping_mul(n1));
                    (m0, low_limb(second).wrapping_mul(self.inverse) & MASK)
                }
                None => (0, 0),
            };
            add_rows(rest, m0, m1, &self.limbs);
            if let Some([c0, c1, c2]) = rest.first_chunk_mut() {
                *c1 = c1.wrapping_add(*c0 >> WIDTH);
                *c2 = c2.wrapping_add(*c1 >> WIDTH);
            }
            rest = rest.get_mut(2..).unwrap_or_default();
        }
        carry(rest, number);
    }

    /// `x = x ^ exponent` in Montgomery's form, below twice the modulus for an `x` that is. The exponent (bytes, the high one
    /// first) is a secret but for its size.
    ///
    /// Windows of four bits: every window costs four squarings, one product and one look at all sixteen powers.
    pub fn power(&self, x: &mut [u32], exponent: &[u8], columns: &mut [u64]) {
        let length = self.limbs.len();
        let mut powers = Zeroizing::new(Vec::with_capacity(length.saturating_mul(16)));
        let mut power = self.one.clone();
        for _ in 0..16 {
            powers.extend_from_slice(&power);
            self.multiply(&mut power, x, columns);
        }
        x.copy_from_slice(&self.one);
        for window in exponent.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
            for _ in 0..4 {
                self.square(x, columns);
            }
            select(&powers, u32::from(window), &mut power);
            self.multiply(x, &power, columns);
        }
    }

    /// `x = x ^ exponent` in Montgomery's form, for an exponent above 0 that is no secret.
    pub fn power_public(&self, x: &mut [u32], exponent: u64, columns: &mut [u64]) {
        let base = Zeroizing::new(x.to_vec());
        let highest = u64::BITS
            .saturating_sub(exponent.leading_zeros())
            .saturating_sub(1);
        for place in (0..highest).rev() {
            self.square(x, columns);
            if exponent.wrapping_shr(place) & 1 == 1 {
                self.multiply(x, &base, columns);
            }
        }
    }
}

/// The entry of a table at this place; each entry is as long as `found`, and each is read.
fn select(table: &[u32], place: u32, found: &mut [u32]) {
    found.fill(0);
    for (entry, nth) in zip(table.chunks_exact(found.len().max(1)), 0u32..) {
        // All ones where it is this one: only 0 - 1 reaches the high bit, for both are small.
        let keep = ((nth ^ place).wrapping_sub(1) >> 31).wrapping_neg();
        let keep = black_box(keep);
        for (limb, other) in zip(found.iter_mut(), entry) {
            *limb |= other & keep;
        }
    }
}

/// `x = x - y + 2 * modulus`, for two numbers below twice the modulus: above 0 and below four times the modulus.
pub fn difference(x: &mut [u32], y: &[u32], modulus: &Modulus) {
    // Signed: a limb plus two, minus one, plus a carry of -1 to 2 stays within 2^30.
    let mut carry = 0u32;
    for ((x, y), n) in zip(zip(x, y), modulus.limbs()) {
        let sum = x.wrapping_add(n << 1).wrapping_add(carry).wrapping_sub(*y);
        *x = sum & MASK;
        // An arithmetic shift, so that the sign stays.
        carry = sum.cast_signed().wrapping_shr(27).cast_unsigned();
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that panics has failed, which is what it is for"
)]
mod tests {
    //! Against num-bigint-dig. How many cases: `RSA_SIGNER_CASES` times the usual ones.

    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    use rsa::BigUint;

    use super::*;

    fn cases(usual: u32) -> u32 {
        let more = std::env::var("RSA_SIGNER_CASES").map(|times| times.parse().unwrap());
        usual * more.unwrap_or(1)
    }

    fn big(number: &[u32]) -> BigUint {
        let highest_first = number.iter().rev();
        highest_first.fold(BigUint::default(), |sum, limb| {
            assert!(*limb <= MASK, "a limb of more than {WIDTH} bits");
            (sum << WIDTH) + *limb
        })
    }

    /// The slow way of `big` costs more than what is tested.
    fn big_of_bytes(number: &[u32]) -> BigUint {
        BigUint::from_bytes_be(&to_bytes(number, number.len() * WIDTH / 8 + 1))
    }

    fn number(value: &BigUint, length: usize) -> Number {
        from_bytes(&value.to_bytes_be(), length).unwrap()
    }

    fn r(modulus: &Modulus) -> BigUint {
        BigUint::from(1u8) << (modulus.limbs.len() * WIDTH)
    }

    /// Limbs in which carries are likely: random ones, none, all ones, and those one off.
    fn limbs(random: &mut StdRng, length: usize) -> Number {
        let kind = random.gen_range(0..6);
        let limbs = (0..length).map(|_| match (kind, random.gen_range(0..8)) {
            (0, _) | (4, 0..4) => MASK,
            (1, _) | (5, 0..6) => 0,
            (2, 0..5) => MASK - random.gen_range(0..2),
            (2, _) => random.gen_range(0..2),
            _ => random.gen_range(0..=MASK),
        });
        Zeroizing::new(limbs.collect())
    }

    /// An odd modulus of exactly so many bits.
    fn modulus(random: &mut StdRng, bits: usize, length: usize) -> (Modulus, BigUint) {
        let one = BigUint::from(1u8);
        let mut value = big(&limbs(random, length)) % (&one << bits);
        for bit in [&one << (bits - 1), one] {
            if (&value / &bit) % 2u8 == BigUint::default() {
                value += bit;
            }
        }
        (Modulus::new(&value.to_bytes_be(), length).unwrap(), value)
    }

    /// A number below a bound, often at the very edge.
    fn below(random: &mut StdRng, bound: &BigUint, length: usize) -> Number {
        let near = BigUint::from(random.gen_range(0..3u8)) + 1u8;
        let value = match random.gen_range(0..8) {
            0 => bound - near,
            1 => near % bound,
            2 => BigUint::default(),
            _ => big_of_bytes(&limbs(random, length)) % bound,
        };
        number(&value, length)
    }

    /// Sizes of primes and moduli of keys, and others down to the smallest.
    fn sizes(random: &mut StdRng) -> (usize, usize) {
        let bits = match random.gen_range(0..10) {
            0..5 => 1024,
            5 => 2048,
            6 => 1536,
            7 => *[2, 3, 27, 52, 53, 54, 1023, 1025, 2047]
                .get(random.gen_range(0..9))
                .unwrap(),
            8 => random.gen_range(2..200),
            _ => random.gen_range(200..1100),
        };
        let length = length_for(bits).unwrap();
        // The shorter prime of a key has more limbs than it needs.
        let more = if random.gen_range(0..10) == 0 {
            2 * random.gen_range(1..5)
        } else {
            0
        };
        (bits, length + more)
    }

    #[test]
    fn products_are_num_bigints() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..cases(5_000) {
            let length = 2 * random.gen_range(1..=38);
            let (x, y) = (limbs(&mut random, length), limbs(&mut random, length));
            let (mut columns, mut product) = (columns(length), zero(2 * length));
            multiply(&mut columns, &x, &y);
            carry(&columns, &mut product);
            assert!(product.iter().all(|limb| *limb <= MASK));
            let (x_big, y_big) = (big_of_bytes(&x), big_of_bytes(&y));
            assert_eq!(big_of_bytes(&product), &x_big * y_big);
            square(&mut columns, &x);
            carry(&columns, &mut product);
            assert_eq!(big_of_bytes(&product), &x_big * &x_big);
        }
    }

    #[test]
    fn products_and_squares_modulo_a_number_are_num_bigints_and_stay_below_twice_it() {
        let mut random = StdRng::seed_from_u64(2);
        let mut done = 0;
        while done < cases(10_000) {
            let (bits, length) = sizes(&mut random);
            let (modulus, n) = modulus(&mut random, bits, length);
            let (r, mut columns) = (r(&modulus), columns(length));
            let (twice, r_mod_n) = (&n << 1, &r % &n);
            for _ in 0..50 {
                let x = below(&mut random, &twice, length);
                let y = below(&mut random, &twice, length);
                let (x_big, y_big) = (big_of_bytes(&x), big_of_bytes(&y));

                let mut product = x.clone();
                modulus.multiply(&mut product, &y, &mut columns);
                let is = big_of_bytes(&product);
                assert!(is < twice && product.iter().all(|limb| *limb <= MASK));
                assert_eq!(is * &r_mod_n % &n, &x_big * &y_big % &n);

                let mut square = x.clone();
                modulus.square(&mut square, &mut columns);
                let is = big_of_bytes(&square);
                assert!(is < twice && square.iter().all(|limb| *limb <= MASK));
                assert_eq!(is * &r_mod_n % &n, &x_big * &x_big % &n);
                done += 1;
            }
        }
    }

    #[test]
    fn a_reduction_takes_all_that_is_below_r_times_the_modulus() {
        let mut random = StdRng::seed_from_u64(3);
        for _ in 0..cases(1_500) {
            let (bits, length) = sizes(&mut random);
            let (modulus, n) = modulus(&mut random, bits, length);
            let (r, mut columns) = (r(&modulus), columns(length));
            let x = below(&mut random, &(&r * &n), 2 * length);
            for (column, limb) in zip(columns.iter_mut(), x.iter()) {
                *column = u64::from(*limb);
            }
            let mut reduced = zero(length);
            modulus.reduce(&mut columns, &mut reduced);
            assert!(big(&reduced) < &n << 1);
            assert_eq!(big(&reduced) * &r % &n, big_of_bytes(&x) % &n);

            let x = below(&mut random, &r, length);
            let mut y = x.clone();
            modulus.enter(&mut y, &mut columns);
            assert!(big(&y) < &n << 1);
            assert_eq!(big(&y) % &n, big(&x) * &r % &n);
            modulus.leave(&mut y, &mut columns);
            assert_eq!(big(&y), big(&x) % &n);
            // And from any number below R.
            let mut y = x.clone();
            modulus.leave(&mut y, &mut columns);
            assert!(big(&y) < n);
            assert_eq!(big(&y) * &r % &n, big(&x) % &n);
        }
    }

    #[test]
    fn powers_are_num_bigints() {
        let mut random = StdRng::seed_from_u64(4);
        for _ in 0..cases(80) {
            let (bits, length) = sizes(&mut random);
            let (modulus, n) = modulus(&mut random, bits, length);
            let mut columns = columns(length);
            let x = below(&mut random, &n, length);
            let exponent = below(&mut random, &n, length);
            let mut power = x.clone();
            modulus.enter(&mut power, &mut columns);
            let base = power.clone();
            modulus.power(
                &mut power,
                &to_bytes(&exponent, bits.div_ceil(8)),
                &mut columns,
            );
            assert!(big(&power) < &n << 1);
            modulus.leave(&mut power, &mut columns);
            assert_eq!(big(&power), big(&x).modpow(&big(&exponent), &n));

            let exponent = random.gen_range(1..1u64 << 33) >> random.gen_range(0..33) | 1;
            let mut power = base;
            modulus.power_public(&mut power, exponent, &mut columns);
            modulus.leave(&mut power, &mut columns);
            assert_eq!(big(&power), big(&x).modpow(&exponent.into(), &n));
        }
    }

    #[test]
    fn remainders_differences_and_bytes_are_num_bigints() {
        let mut random = StdRng::seed_from_u64(5);
        for _ in 0..cases(400) {
            let (bits, length) = sizes(&mut random);
            let (modulus, n) = modulus(&mut random, bits, length);
            let mut bytes = vec![0; random.gen_range(0..300)];
            random.fill(&mut bytes[..]);
            let value = BigUint::from_bytes_be(&bytes);
            assert_eq!(big(&remainder(&bytes, &modulus.limbs)), &value % &n);
            // An even one, as a prime less 1 is.
            if bits > 2 {
                let mut even = modulus.limbs.clone();
                even[0] -= 1;
                assert_eq!(big(&remainder(&bytes, &even)), &value % (&n - 1u8));
            }
            let factor = random.r#gen::<u64>() >> random.gen_range(0..64);
            let x = below(&mut random, &n, length);
            assert_eq!(
                big(&times(&x, factor, &modulus.limbs)),
                big(&x) * factor % &n
            );

            let (x, y) = (
                below(&mut random, &(&n << 1), length),
                below(&mut random, &(&n << 1), length),
            );
            let mut less = x.clone();
            difference(&mut less, &y, &modulus);
            assert_eq!(big(&less), big(&x) + (&n << 1) - big(&y));
            assert_eq!(is_below(&x, &y), big(&x) < big(&y));
            let mut once = x.clone();
            subtract_once(&mut once, &modulus.limbs);
            let expected = if big(&x) < n { big(&x) } else { big(&x) - &n };
            assert_eq!(big(&once), expected);

            assert_eq!(bit_length(&bytes), value.bits());
            let room = value.bits().div_ceil(WIDTH);
            let read = from_bytes(&bytes, room).unwrap();
            assert_eq!(big(&read), value);
            assert_eq!(BigUint::from_bytes_be(&to_bytes(&read, bytes.len())), value);
            assert!(room == 0 || from_bytes(&bytes, room - 1).is_none());
        }
    }

    /// Where the proof in the module's comment is tightest: every limb all ones, at the lengths of keys and at the greatest.
    #[test]
    fn no_column_overflows_at_any_length() {
        for length in (2..=160)
            .chain(400..=MOST)
            .step_by(2)
            .filter(|length| length % 4 == 0 || *length < 80)
        {
            // The greatest modulus of this length: in it, the greatest numbers below twice the modulus, and the greatest of all.
            let n = (BigUint::from(1u8) << (length * WIDTH - 2)) - 1u8;
            let modulus = Modulus::new(&n.to_bytes_be(), length).unwrap();
            let (r, mut columns) = (r(&modulus), columns(length));
            let greatest = number(&((&n << 1) - 1u8), length);
            let ones: Number = Zeroizing::new(vec![MASK; length]);
            let mut product = greatest.clone();
            modulus.multiply(&mut product, &greatest, &mut columns);
            let expected = big_of_bytes(&greatest) * big_of_bytes(&greatest) % &n;
            assert_eq!(big_of_bytes(&product) * &r % &n, expected);
            modulus.square(&mut product, &mut columns);
            let mut whole = zero(2 * length);
            square(&mut columns, &ones);
            carry(&columns, &mut whole);
            assert_eq!(big_of_bytes(&whole), (&r - 1u8) * (&r - 1u8));
            // Sums at their bound, as wide as they are before they are carried.
            let bound = 2 * u128::try_from(length).unwrap() * u128::from(MASK).pow(2) + (1 << 38);
            assert!(bound < 1 << 64, "{length}");
        }
        assert_eq!(length_for(MOST * WIDTH - 2), Some(MOST));
        assert_eq!(length_for(MOST * WIDTH - 1), None);
        assert_eq!(length_for(usize::MAX), None);
        assert!(length_for(4096).is_some_and(|length| length == 152));
    }

    #[test]
    fn of_a_table_the_entry_asked_for_is_found() {
        let table: Vec<u32> = (0..16 * 6).map(|at| MASK - at).collect();
        let mut found = [0; 6];
        for place in 0..16 {
            select(&table, place, &mut found);
            assert_eq!(found, table.as_chunks::<6>().0[place as usize]);
        }
    }

    #[test]
    fn what_is_no_odd_number_above_1_is_no_modulus() {
        for bytes in [
            &[][..],
            &[0],
            &[1],
            &[0, 0, 1],
            &[2],
            &[0xff, 0xfe],
            &[0; 200],
        ] {
            assert!(Modulus::new(bytes, 38).is_none(), "{bytes:?}");
        }
        for (bits, length) in [(1024, 38), (1025, 38), (1026, 38), (5, 2)] {
            let value = (BigUint::from(1u8) << bits) - 1u8;
            assert_eq!(
                Modulus::new(&value.to_bytes_be(), length).is_some(),
                bits != 1025 && bits != 1026
            );
        }
        assert!(Modulus::new(&[3], 2).is_some());
        assert!(Modulus::new(&[3], MOST + 2).is_none());
        assert!(Modulus::new(&[3], 0).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(1_000), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_the_numbers_a_product_modulo_a_third_is_num_bigints(
            n in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 1..140),
            x in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..140),
            y in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..140),
        ) {
            let length = length_for(bit_length(&n)).unwrap();
            let Some(modulus) = Modulus::new(&n, length) else {
                prop_assert!(bit_length(&n) < 2 || n.last().unwrap() & 1 == 0);
                return Ok(());
            };
            let n = BigUint::from_bytes_be(&n);
            let (x, y) = (BigUint::from_bytes_be(&x) % &n, BigUint::from_bytes_be(&y) % &n);
            let mut columns = columns(length);
            let mut product = number(&x, length);
            modulus.enter(&mut product, &mut columns);
            modulus.multiply(&mut product, &number(&y, length), &mut columns);
            subtract_once(&mut product, &modulus.limbs);
            prop_assert_eq!(big(&product), x * y % n);
        }
    }
}
