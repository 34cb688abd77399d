// Runs a compiled decoder machine: tokens in on standard input, tokens out on standard output.
//
// A line of input is a token's fields, "TOKEN RESTART SAMPLE RANDOM MULTIPLIER AMOUNT"; a machine that cannot sample ignores the last four.
// The answer is "TOKEN CYCLES": the next token, and the clock edges from the one taken to the other offered.
// The circuit is `sim.bench.harness.Harness` around the machine; machine.h, written beside it, says where its ports lie.
// Exit status: 0 at the end of the input, 1 if no token comes for WATCHDOG_CYCLES.

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <type_traits>

#include "Vtop.h"
#include "verilated.h"

using Bits = std::uint64_t;

struct Field {
    unsigned offset, width;
};

#include "machine.h" // READY_BIT, VALID_BIT, TOKEN_BITS, TOKEN_OUT, I_VALID, O_READY, WATCHDOG_CYCLES, FIELDS

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

int main(int argc, char **argv) {
    auto context = std::make_unique<VerilatedContext>();
    context->commandArgs(argc, argv);
    auto top = std::make_unique<Vtop>(context.get());
    Bits cycles = 0;
    const auto settled = [&]() -> Bits {
        top->clk = 0;
        top->eval();
        return top->outputs;
    };
    const auto edge = [&]() {
        settled();
        top->clk = 1;
        top->eval();
        ++cycles;
    };
    const Field valid{I_VALID, 1}, ready{O_READY, 1}, reset{0, 1};
    top->rst = 1;
    put(top->inputs, reset, 1);
    edge();
    edge();
    top->rst = 0;
    put(top->inputs, reset, 0);
    for (;;) {
        for (const Field &field : FIELDS) {
            Bits value = 0;
            if (std::scanf("%" SCNu64, &value) != 1) {
                top->final();
                return 0;
            }
            put(top->inputs, field, value);
        }
        put(top->inputs, valid, 1);
        while (!(settled() >> READY_BIT & 1)) {
            edge();
        }
        const Bits taken = cycles;
        edge();
        put(top->inputs, valid, 0);
        while (!(settled() >> VALID_BIT & 1)) {
            if (cycles - taken > WATCHDOG_CYCLES) {
                return 1;
            }
            edge();
        }
        const Bits next = settled() >> TOKEN_OUT & ((Bits{1} << TOKEN_BITS) - 1);
        std::printf("%" PRIu64 " %" PRIu64 "\n", next, cycles - taken);
        std::fflush(stdout);
        put(top->inputs, ready, 1);
        edge();
        put(top->inputs, ready, 0);
    }
}
