// A board with a serial port, at the other end of pipes: bytes come in by its wire `rx`, what it sends on `tx` goes out.
//
//   bench DIVISOR QUIET_CYCLES
//
// Reads commands from stdin, numbers being 32 bits in this machine's order:
//   W COUNT BYTES   send the bytes back to back; answers, as soon as the board has been silent for QUIET_CYCLES, COUNT BYTES that it sent
//   R               reset the board; answers nothing
// Exit status: 0 at the end of stdin, 1 a byte without its stop bit came from the board, 2 a broken pipe or an unknown command.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "Vtop.h"
#include "verilated.h"

constexpr unsigned BYTE_BITS = 10; // start, eight data bits, stop
constexpr unsigned RESET_CYCLES = 4;

class Board {
  public:
    Board(VerilatedContext &context, unsigned divisor) : top(std::make_unique<Vtop>(&context)), divisor(divisor) {
        top->clk = 0;
        reset();
    }

    ~Board() { top->final(); }

    void reset() {
        top->rx = 1;
        top->rst = 1;
        for (unsigned cycle = 0; cycle < RESET_CYCLES; ++cycle) {
            clock();
        }
        top->rst = 0;
        left = 0;
        received.clear();
    }

    void send(std::uint8_t byte) {
        const unsigned frame = 1u << (BYTE_BITS - 1) | static_cast<unsigned>(byte) << 1;
        for (unsigned place = 0; place < BYTE_BITS; ++place) {
            top->rx = frame >> place & 1;
            for (unsigned cycle = 0; cycle < divisor; ++cycle) {
                step();
            }
        }
    }

    void wait(unsigned quiet_cycles) {
        for (unsigned quiet = 0; quiet < quiet_cycles; quiet = left > 0 ? 0 : quiet + 1) {
            step();
        }
    }

    std::vector<std::uint8_t> received;
    bool stop_missing = false;

  private:
    // One cycle, and what the far end's receiver does in it: it samples every bit in its middle.
    void step() {
        clock();
        if (left == 0) {
            if (!top->tx) {
                left = BYTE_BITS * divisor;
            }
            return;
        }
        --left;
        const unsigned elapsed = BYTE_BITS * divisor - left;
        if (elapsed % divisor != divisor / 2) {
            return;
        }
        const unsigned place = elapsed / divisor;
        shift = shift >> 1 | static_cast<unsigned>(top->tx) << (BYTE_BITS - 1);
        if (place == BYTE_BITS - 1) {
            stop_missing |= !top->tx;
            received.push_back(static_cast<std::uint8_t>(shift >> 1 & 0xFF));
            left = 0;
        }
    }

    void clock() {
        top->clk = 1;
        top->eval();
        top->clk = 0;
        top->eval();
    }

    std::unique_ptr<Vtop> top;
    const unsigned divisor;
    unsigned left = 0; // cycles of the byte that the board is sending
    unsigned shift = 0;
};

template <typename Element> static bool get(Element *elements, std::size_t count) {
    return std::fread(elements, sizeof(Element), count, stdin) == count;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        return 2;
    }
    const unsigned divisor = static_cast<unsigned>(std::atoi(argv[1])), quiet_cycles = static_cast<unsigned>(std::atoi(argv[2]));
    VerilatedContext context;
    Board board(context, divisor);
    std::uint32_t count;
    std::vector<std::uint8_t> bytes;
    for (int command; (command = std::getchar()) != EOF;) {
        if (command == 'R') {
            board.reset();
            continue;
        }
        if (command != 'W' || !get(&count, 1)) {
            return 2;
        }
        bytes.resize(count);
        if (!get(bytes.data(), count)) {
            return 2;
        }
        for (const std::uint8_t byte : bytes) {
            board.send(byte);
        }
        board.wait(quiet_cycles);
        if (board.stop_missing) {
            return 1;
        }
        count = static_cast<std::uint32_t>(board.received.size());
        if (std::fwrite(&count, sizeof count, 1, stdout) != 1 ||
            std::fwrite(board.received.data(), 1, count, stdout) != count || std::fflush(stdout) != 0) {
            return 2;
        }
        board.received.clear();
    }
    return 0;
}
