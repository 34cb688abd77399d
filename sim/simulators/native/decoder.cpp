// Runs a compiled decoder machine: tokens in on standard input, tokens out on standard output.
//
// A line of input is "TOKEN RESTART"; the answer is "TOKEN CYCLES": the next token, and the clock edges from the one taken to the other offered.
// The circuit is `sim.bench.harness.Harness` around the machine; machine.h, written beside it, says where its ports lie.
// Exit status: 0 at the end of the input, 1 if no token comes for WATCHDOG_CYCLES.

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <memory>

#include "Vtop.h"
#include "verilated.h"

#include "machine.h" // READY_BIT, VALID_BIT, TOKEN_IN, TOKEN_BITS, RESTART_IN, TOKEN_OUT, I_VALID, O_READY, WATCHDOG_CYCLES

using Bits = std::uint64_t;

int main(int argc, char **argv) {
    auto context = std::make_unique<VerilatedContext>();
    context->commandArgs(argc, argv);
    auto top = std::make_unique<Vtop>(context.get());
    Bits cycles = 0;
    const auto edge = [&](Bits inputs) {
        top->inputs = inputs;
        top->clk = 0;
        top->eval();
        top->clk = 1;
        top->eval();
        ++cycles;
    };
    const auto settled = [&](Bits inputs) -> Bits {
        top->inputs = inputs;
        top->clk = 0;
        top->eval();
        return top->outputs;
    };
    top->rst = 1;
    edge(1);
    edge(1);
    top->rst = 0;
    unsigned token = 0, restart = 0;
    while (std::scanf("%u %u", &token, &restart) == 2) {
        const Bits offered = Bits{1} << I_VALID | Bits{token} << TOKEN_IN | Bits{restart} << RESTART_IN;
        while (!(settled(offered) >> READY_BIT & 1)) {
            edge(offered);
        }
        const Bits taken = cycles;
        edge(offered);
        while (!(settled(0) >> VALID_BIT & 1)) {
            if (cycles - taken > WATCHDOG_CYCLES) {
                return 1;
            }
            edge(0);
        }
        const Bits next = settled(Bits{1} << O_READY) >> TOKEN_OUT & ((Bits{1} << TOKEN_BITS) - 1);
        std::printf("%" PRIu64 " %" PRIu64 "\n", next, cycles - taken);
        std::fflush(stdout);
        edge(Bits{1} << O_READY);
    }
    top->final();
    return 0;
}
