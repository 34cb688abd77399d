// Runs a compiled decoder machine.
//
// Without an argument, tokens in on standard input, tokens out on standard output. A line of input is the fields of each
// sequence's token, "ACTIVE TOKEN RESTART SAMPLE RANDOM MULTIPLIER AMOUNT"; a machine that cannot sample ignores the
// last four, one of a single sequence the first. With a probe "UNIT LAST" follow. The answer is "TOKEN CYCLES", with a
// token for each sequence: the next one, and the clock edges from the ones taken to the next ones offered. With a probe
// its checksum follows.
// Exit status: 0 at the end of the input, 1 if no token comes for WATCHDOG_CYCLES.
//
// With a file of records of 32-bit numbers, it runs them all and compares; see `Record`. It prints "done CYCLES", or
// what is wrong: the kind, the number of the record, what came, what was expected.
//
// The circuit is `sim.bench.harness.Harness` with one reset around the machine; machine.h, written beside it, says
// where its ports lie.

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <memory>
#include <type_traits>

#include "Vtop.h"
#include "verilated.h"

using Bits = std::uint64_t;

struct Field {
    unsigned offset, width;
};

// READY_BIT, VALID_BIT, SEQUENCES, TOKEN_BITS, TOKEN_OUT, I_VALID, O_READY, PROBED, PROBE, CHECKSUM_OUT, WATCHDOG_CYCLES,
// FIELDS
#include "machine.h"

// Writes bits of a port, which is a number or, beyond 64 bits, an array of 32-bit words.
template <typename Port> void put(Port &port, Field field, Bits value) {
    if constexpr (std::is_integral_v<Port>) {
        const Bits mask = field.width == 0 ? 0 : (~Bits{0} >> (64 - field.width)) << field.offset;
        port = static_cast<Port>((Bits{port} & ~mask) | (value << field.offset & mask));
    } else {
        for (unsigned bit = 0; bit < field.width; ++bit) {
            const unsigned place = field.offset + bit;
            const std::uint32_t one = std::uint32_t{1} << place % 32;
            port[place / 32] = (value >> bit & 1) ? port[place / 32] | one : port[place / 32] & ~one;
        }
    }
}

// A token, when it comes and goes, and what is expected.
struct Record {
    std::uint32_t fields[std::size(FIELDS)];
    std::uint32_t source_pause, sink_pause; // cycles before it is offered, and before the answer is taken
    std::uint32_t reset_after;              // cycles after it was taken in which a reset ends it; 0: an answer is expected
    std::uint32_t next[SEQUENCES], cycles;  // the answer, and the clock edges until it is offered

    // Whether a sequence's answer counts: a single one has no field for that.
    bool active(unsigned sequence) const { return SEQUENCES == 1 || fields[sequence * (std::size(FIELDS) / SEQUENCES)] != 0; }
};

class Bench {
  public:
    explicit Bench(VerilatedContext *context) : top(std::make_unique<Vtop>(context)) {
        reset();
    }

    // A clock edge; what the inputs were set to decides what it does. All outputs are registers': they need no further evaluation.
    void edge() {
        top->clk = 0;
        top->eval();
        top->clk = 1;
        top->eval();
        ++cycles;
    }

    // Two edges: at the second one the circuit is reset.
    void reset() {
        const Field field{0, 1};
        put(top->inputs, field, 1);
        edge();
        put(top->inputs, field, 0);
        edge();
    }

    void offer(bool valid) { put(top->inputs, {I_VALID, 1}, valid); }
    void take(bool ready) { put(top->inputs, {O_READY, 1}, ready); }
    void field(std::size_t number, Bits value) { put(top->inputs, FIELDS[number], value); }
    bool takes() const { return Bits{top->outputs} >> READY_BIT & 1; }
    bool gives() const { return Bits{top->outputs} >> VALID_BIT & 1; }
    Bits token(unsigned sequence = 0) const {
        return Bits{top->outputs} >> (TOKEN_OUT + sequence * TOKEN_BITS) & ((Bits{1} << TOKEN_BITS) - 1);
    }

    // Clock edges until a condition holds; false if it does not within WATCHDOG_CYCLES.
    template <typename Condition> bool wait(Condition holds) {
        for (Bits left = WATCHDOG_CYCLES; !holds(); --left) {
            if (left == 0) {
                return false;
            }
            edge();
        }
        return true;
    }

    // Offers what the fields hold until it is taken; returns the cycle of that, or 0.
    Bits give() {
        offer(true);
        if (!wait([this] { return takes(); })) {
            return 0;
        }
        const Bits taken = cycles;
        edge();
        offer(false);
        return taken;
    }

    Bits cycles = 0;
    std::unique_ptr<Vtop> top;
};

int converse(Bench &bench) {
    for (;;) {
        for (std::size_t number = 0; number < std::size(FIELDS); ++number) {
            Bits value = 0;
            if (std::scanf("%" SCNu64, &value) != 1) {
                return 0;
            }
            bench.field(number, value);
        }
        if constexpr (PROBED != 0) {
            for (const Field &field : PROBE) {
                Bits value = 0;
                if (std::scanf("%" SCNu64, &value) != 1) {
                    return 0;
                }
                put(bench.top->inputs, field, value);
            }
        }
        const Bits taken = bench.give();
        if (taken == 0 || !bench.wait([&] { return bench.gives(); })) {
            return 1;
        }
        for (unsigned sequence = 0; sequence < SEQUENCES; ++sequence) {
            std::printf("%" PRIu64 " ", bench.token(sequence));
        }
        std::printf("%" PRIu64, bench.cycles - taken);
        if constexpr (PROBED != 0) {
            // The last logits may still be on their way into the checksum.
            for (int settling = 0; settling < 16; ++settling) {
                bench.edge();
            }
            std::printf(" %" PRIu64, Bits{bench.top->outputs} >> CHECKSUM_OUT & 0xFFFFFFFF);
        }
        std::printf("\n");
        std::fflush(stdout);
        bench.take(true);
        bench.edge();
        bench.take(false);
    }
}

int compare(Bench &bench, std::FILE *file) {
    std::uint64_t number = 0, noise = 0x9E3779B97F4A7C15;
    const auto wrong = [&](const char *kind, Bits got, Bits wanted) {
        std::printf("%s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", kind, number, got, wanted);
        return 0;
    };
    for (Record record; std::fread(&record, sizeof record, 1, file) == 1; ++number) {
        // Nothing is offered: what the payload holds must not matter, and nothing must come.
        const auto invalid = [&] {
            for (std::size_t field = 0; field < std::size(FIELDS); ++field) {
                noise ^= noise << 13, noise ^= noise >> 7, noise ^= noise << 17;
                bench.field(field, noise);
            }
        };
        bench.take(record.sink_pause % 2);
        for (std::uint32_t pause = 0; pause < record.source_pause; ++pause) {
            invalid();
            bench.edge();
            if (bench.gives()) {
                return wrong("extra", bench.token(), 0);
            }
        }
        for (std::size_t field = 0; field < std::size(FIELDS); ++field) {
            bench.field(field, record.fields[field]);
        }
        const Bits taken = bench.give();
        if (taken == 0) {
            return wrong("deadlock", 0, 0);
        }
        invalid();
        bench.take(record.sink_pause == 0);
        if (record.reset_after != 0) {
            for (std::uint32_t pause = 1; pause < record.reset_after; ++pause) {
                bench.edge();
            }
            bench.reset();
            continue;
        }
        if (!bench.wait([&] { return bench.gives(); })) {
            return wrong("missing", 0, record.next[0]);
        }
        const Bits cycles = bench.cycles - taken;
        Bits given[SEQUENCES];
        for (unsigned sequence = 0; sequence < SEQUENCES; ++sequence) {
            given[sequence] = bench.token(sequence);
            if (record.active(sequence) && given[sequence] != record.next[sequence]) {
                return wrong("token", given[sequence], record.next[sequence]);
            }
        }
        if (cycles != record.cycles) {
            return wrong("cycles", cycles, record.cycles);
        }
        for (std::uint32_t pause = 0; pause < record.sink_pause; ++pause) {
            bench.edge();
            if (!bench.gives()) {
                return wrong("withdrawn", 0, given[0]);
            }
            for (unsigned sequence = 0; sequence < SEQUENCES; ++sequence) {
                if (bench.token(sequence) != given[sequence]) {
                    return wrong("changed", bench.token(sequence), given[sequence]);
                }
            }
        }
        bench.take(true);
        bench.edge();
        if (bench.gives()) {
            return wrong("extra", bench.token(), 0);
        }
    }
    std::printf("done %" PRIu64 "\n", bench.cycles);
    return 0;
}

int main(int argc, char **argv) {
    auto context = std::make_unique<VerilatedContext>();
    Bench bench(context.get());
    if (argc < 2) {
        return converse(bench);
    }
    std::FILE *file = std::fopen(argv[1], "rb");
    return file == nullptr ? 2 : compare(bench, file);
}
