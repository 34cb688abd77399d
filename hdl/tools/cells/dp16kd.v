// Behaviour of the ECP5 block RAM cell DP16KD, which Yosys knows as a black box only.
// Sources: Lattice FPGA-TN-02204, "ECP5 and ECP5-5G Memory Usage Guide"; ports, and how narrow words lie in wide ones, as in Yosys'
// ecp5/cells_sim.v, lattice/brams_16kd.txt and lattice/brams_map_16kd.v.
//
// The array holds 512 rows of 36 bits. A port of width W sees it as words of W bits; widths 1, 2 and 4 leave every ninth bit out. The address
// counts bits: a word of 36, 18 or 9 bits ignores its lowest 5, 4 or 3 address bits, and in writes of 18 and 36 bits these are byte enables.
// 36 bits are split: lower half on side A's pins, upper half on side B's; port A then only writes, and port B only reads.
//
// Modelled: widths, byte enables, chip selects, clock polarity, the write modes NORMAL, WRITETHROUGH and READBEFOREWRITE, the output register
// (REGMODE OUTREG), synchronous and asynchronous resets of the outputs, initial contents. What the guide leaves open becomes X: a bit that one
// port reads or writes while the other writes it at the same instant, and output pins beyond a port's width.

`timescale 1ns / 1ps

module DP16KD (
    input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2,
    DIA1, DIA0,
    input ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0,
    input CEA, OCEA, CLKA, WEA, RSTA, CSA2, CSA1, CSA0,
    output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2,
    DOA1, DOA0,
    input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2,
    DIB1, DIB0,
    input ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
    input CEB, OCEB, CLKB, WEB, RSTB, CSB2, CSB1, CSB0,
    output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2,
    DOB1, DOB0
);
    parameter DATA_WIDTH_A = 18;
    parameter DATA_WIDTH_B = 18;
    parameter REGMODE_A = "NOREG";
    parameter REGMODE_B = "NOREG";
    parameter RESETMODE = "SYNC";
    parameter ASYNC_RESET_RELEASE = "SYNC";
    parameter CSDECODE_A = "0b000";
    parameter CSDECODE_B = "0b000";
    parameter WRITEMODE_A = "NORMAL";
    parameter WRITEMODE_B = "NORMAL";
    parameter CLKAMUX = "CLKA";
    parameter CLKBMUX = "CLKB";
    parameter GSR = "ENABLED";
    parameter WID = 0;
    parameter INIT_DATA = "STATIC";
    parameter INITVAL_00 = 320'h0;
    parameter INITVAL_01 = 320'h0;
    parameter INITVAL_02 = 320'h0;
    parameter INITVAL_03 = 320'h0;
    parameter INITVAL_04 = 320'h0;
    parameter INITVAL_05 = 320'h0;
    parameter INITVAL_06 = 320'h0;
    parameter INITVAL_07 = 320'h0;
    parameter INITVAL_08 = 320'h0;
    parameter INITVAL_09 = 320'h0;
    parameter INITVAL_0A = 320'h0;
    parameter INITVAL_0B = 320'h0;
    parameter INITVAL_0C = 320'h0;
    parameter INITVAL_0D = 320'h0;
    parameter INITVAL_0E = 320'h0;
    parameter INITVAL_0F = 320'h0;
    parameter INITVAL_10 = 320'h0;
    parameter INITVAL_11 = 320'h0;
    parameter INITVAL_12 = 320'h0;
    parameter INITVAL_13 = 320'h0;
    parameter INITVAL_14 = 320'h0;
    parameter INITVAL_15 = 320'h0;
    parameter INITVAL_16 = 320'h0;
    parameter INITVAL_17 = 320'h0;
    parameter INITVAL_18 = 320'h0;
    parameter INITVAL_19 = 320'h0;
    parameter INITVAL_1A = 320'h0;
    parameter INITVAL_1B = 320'h0;
    parameter INITVAL_1C = 320'h0;
    parameter INITVAL_1D = 320'h0;
    parameter INITVAL_1E = 320'h0;
    parameter INITVAL_1F = 320'h0;
    parameter INITVAL_20 = 320'h0;
    parameter INITVAL_21 = 320'h0;
    parameter INITVAL_22 = 320'h0;
    parameter INITVAL_23 = 320'h0;
    parameter INITVAL_24 = 320'h0;
    parameter INITVAL_25 = 320'h0;
    parameter INITVAL_26 = 320'h0;
    parameter INITVAL_27 = 320'h0;
    parameter INITVAL_28 = 320'h0;
    parameter INITVAL_29 = 320'h0;
    parameter INITVAL_2A = 320'h0;
    parameter INITVAL_2B = 320'h0;
    parameter INITVAL_2C = 320'h0;
    parameter INITVAL_2D = 320'h0;
    parameter INITVAL_2E = 320'h0;
    parameter INITVAL_2F = 320'h0;
    parameter INITVAL_30 = 320'h0;
    parameter INITVAL_31 = 320'h0;
    parameter INITVAL_32 = 320'h0;
    parameter INITVAL_33 = 320'h0;
    parameter INITVAL_34 = 320'h0;
    parameter INITVAL_35 = 320'h0;
    parameter INITVAL_36 = 320'h0;
    parameter INITVAL_37 = 320'h0;
    parameter INITVAL_38 = 320'h0;
    parameter INITVAL_39 = 320'h0;
    parameter INITVAL_3A = 320'h0;
    parameter INITVAL_3B = 320'h0;
    parameter INITVAL_3C = 320'h0;
    parameter INITVAL_3D = 320'h0;
    parameter INITVAL_3E = 320'h0;
    parameter INITVAL_3F = 320'h0;

    initial begin
        if ((DATA_WIDTH_A == 36) && (WRITEMODE_A != "NORMAL")) begin
            $display("DP16KD: a port of 36 bits has write mode NORMAL, not %s", WRITEMODE_A);
            $finish;
        end
        if (INIT_DATA != "STATIC" || (RESETMODE != "SYNC" && RESETMODE != "ASYNC")) begin
            $display("DP16KD: INIT_DATA %s or RESETMODE %s, which this model does not have", INIT_DATA, RESETMODE);
            $finish;
        end
    end

    // Sixteen words of 18 bits in each INITVAL, each at a multiple of 20 bits.
    reg [64*320-1:0] contents;
    reg [35:0] memory [0:511];
    integer row;
    initial begin
        contents = {
            INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39, INITVAL_38, INITVAL_37,
            INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32, INITVAL_31, INITVAL_30, INITVAL_2F, INITVAL_2E,
            INITVAL_2D, INITVAL_2C, INITVAL_2B, INITVAL_2A, INITVAL_29, INITVAL_28, INITVAL_27, INITVAL_26, INITVAL_25,
            INITVAL_24, INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20, INITVAL_1F, INITVAL_1E, INITVAL_1D, INITVAL_1C,
            INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18, INITVAL_17, INITVAL_16, INITVAL_15, INITVAL_14, INITVAL_13,
            INITVAL_12, INITVAL_11, INITVAL_10, INITVAL_0F, INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A,
            INITVAL_09, INITVAL_08, INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01,
            INITVAL_00
        };
        for (row = 0; row < 512; row = row + 1) memory[row] = {contents[(2*row+1)*20 +: 18], contents[2*row*20 +: 18]};
    end

    wire [17:0] dia = {DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0};
    wire [17:0] dib = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0};
    wire [13:0] ada = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
    wire [13:0] adb = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};

    // Where a word's lowest bit lies in its row, and the bits that it takes up there.
    function [5:0] offset(input integer width, input [13:0] address);
        case (width)
            36: offset = 0;
            18: offset = 18 * address[4];
            9: offset = 9 * address[4:3];
            4: offset = 9 * address[4:3] + 4 * address[2];
            2: offset = 9 * address[4:3] + 2 * address[2:1];
            default: offset = 9 * address[4:3] + address[2:0];
        endcase
    endfunction

    function [35:0] bits(input integer width);
        bits = 36'hfffffffff >> (36 - width);
    endfunction

    function [35:0] written(input integer width, input [13:0] address);
        case (width)
            36: written = {{9{address[3]}}, {9{address[2]}}, {9{address[1]}}, {9{address[0]}}};
            18: written = {{9{address[1]}}, {9{address[0]}}} << offset(width, address);
            default: written = bits(width) << offset(width, address);
        endcase
    endfunction

    // The bits of `mask` become unknown. No exclusive or: simulators of two values put a number in the place of x, and two of them would cancel.
    function [35:0] blur(input [35:0] value, input [35:0] mask);
        blur = (value & ~mask) | (36'bx & mask);
    endfunction

    // "0b010" → 010
    function [2:0] decode(input [39:0] text);
        decode = {text[16], text[8], text[0]};
    endfunction

    wire clock_a = CLKAMUX == "INV" ? ~CLKA : CLKA;
    wire clock_b = CLKBMUX == "INV" ? ~CLKB : CLKB;
    // An unconnected enable enables; an unconnected write enable, reset or chip select is 0.
    wire enable_a = (CEA !== 1'b0) && ({CSA2 === 1'b1, CSA1 === 1'b1, CSA0 === 1'b1} == decode(CSDECODE_A));
    wire enable_b = (CEB !== 1'b0) && ({CSB2 === 1'b1, CSB1 === 1'b1, CSB0 === 1'b1} == decode(CSDECODE_B));
    wire reset_a = RSTA === 1'b1, reset_b = RSTB === 1'b1;
    // A synchronous reset also keeps its port from writing.
    wire write_a = enable_a && !(reset_a && RESETMODE == "SYNC") && (WEA === 1'b1 || WEA === 1'bx);
    wire write_b = enable_b && !(reset_b && RESETMODE == "SYNC") && (WEB === 1'b1 || WEB === 1'bx);

    // What each port does at a clock edge: bits of its row that it reads, bits that it writes. For the other one to collide with, this is kept
    // together with the time, and in one assignment, because a simulator may run parts of the two ports' blocks by turns.
    reg [8:0] row_a, row_b, other_row_a, other_row_b;
    reg [35:0] read_a, read_b, wrote_a, wrote_b, other_read_a, other_read_b, other_wrote_a, other_wrote_b;
    reg [63:0] when_a, when_b;
    reg [144:0] did_a = 0, did_b = 0;

    // The outputs' latches, and which of their bits are unknown.
    reg [35:0] latch_a = 0, latch_b = 0, unknown_a = 0, unknown_b = 0;
    reg [35:0] register_a = 0, register_b = 0;
    wire [35:0] seen_a = blur(latch_a, unknown_a), seen_b = blur(latch_b, unknown_b);

    // The array is written at once, the outputs change after all edges of this instant. Whichever port comes second sees what both did.
    reg [35:0] old_a, new_a, old_b, new_b;
    always @(posedge clock_a) begin
        row_a = ada[13:5];
        wrote_a = write_a ? written(DATA_WIDTH_A, ada) : 36'd0;
        read_a = enable_a && !reset_a && DATA_WIDTH_A != 36 && (!write_a || WRITEMODE_A != "NORMAL") ? bits(DATA_WIDTH_A) << offset(DATA_WIDTH_A, ada) : 36'd0;
        old_a = memory[row_a];
        new_a = (((DATA_WIDTH_A == 36 ? {dib, dia} : {18'd0, dia}) << offset(DATA_WIDTH_A, ada)) & wrote_a) | (old_a & ~wrote_a);
        memory[row_a] = new_a;
        if (read_a != 0) begin
            latch_a <= ((WRITEMODE_A == "WRITETHROUGH" ? new_a : old_a) & read_a) >> offset(DATA_WIDTH_A, ada);
            unknown_a <= 0;
        end
        did_a = {$time, row_a, read_a, wrote_a};
        {when_b, other_row_b, other_read_b, other_wrote_b} = did_b;
        if ($time != 0 && $time == when_b && row_a == other_row_b) begin
            memory[row_a] = blur(new_a, wrote_a & other_wrote_b);
            if (read_a != 0) unknown_a <= (read_a & other_wrote_b) >> offset(DATA_WIDTH_A, ada);
            if (other_read_b != 0) unknown_b <= (other_read_b & wrote_a) >> offset(DATA_WIDTH_B, adb);
        end
        if (reset_a) {latch_a, unknown_a} <= 0;
        if (reset_a) register_a <= 0;
        else if (OCEA !== 1'b0) register_a <= seen_a;
    end
    always @(posedge clock_b) begin
        row_b = adb[13:5];
        wrote_b = write_b ? written(DATA_WIDTH_B, adb) : 36'd0;
        read_b = enable_b && !reset_b && (!write_b || WRITEMODE_B != "NORMAL") ? bits(DATA_WIDTH_B) << offset(DATA_WIDTH_B, adb) : 36'd0;
        old_b = memory[row_b];
        new_b = (({18'd0, dib} << offset(DATA_WIDTH_B, adb)) & wrote_b) | (old_b & ~wrote_b);
        memory[row_b] = new_b;
        if (read_b != 0) begin
            latch_b <= ((WRITEMODE_B == "WRITETHROUGH" ? new_b : old_b) & read_b) >> offset(DATA_WIDTH_B, adb);
            unknown_b <= 0;
        end
        did_b = {$time, row_b, read_b, wrote_b};
        {when_a, other_row_a, other_read_a, other_wrote_a} = did_a;
        if ($time != 0 && $time == when_a && row_b == other_row_a) begin
            memory[row_b] = blur(new_b, wrote_b & other_wrote_a);
            if (read_b != 0) unknown_b <= (read_b & other_wrote_a) >> offset(DATA_WIDTH_B, adb);
            if (other_read_a != 0) unknown_a <= (other_read_a & wrote_b) >> offset(DATA_WIDTH_A, ada);
        end
        if (reset_b) {latch_b, unknown_b} <= 0;
        if (reset_b) register_b <= 0;
        else if (OCEB !== 1'b0) register_b <= seen_b;
    end
    always @(posedge reset_a) if (RESETMODE == "ASYNC") {latch_a, unknown_a, register_a} <= 0;
    always @(posedge reset_b) if (RESETMODE == "ASYNC") {latch_b, unknown_b, register_b} <= 0;

    // What a port of 36 bits reads stands on both sides' pins.
    wire [35:0] out_a = blur(REGMODE_A == "OUTREG" ? register_a : seen_a, ~bits(DATA_WIDTH_A));
    wire [35:0] out_b = blur(REGMODE_B == "OUTREG" ? register_b : seen_b, ~bits(DATA_WIDTH_B));
    wire [17:0] doa = DATA_WIDTH_B == 36 ? out_b[17:0] : DATA_WIDTH_A == 36 ? 18'bx : out_a[17:0];
    wire [17:0] dob = DATA_WIDTH_B == 36 ? out_b[35:18] : out_b[17:0];
    assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0} = doa;
    assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0} = dob;
endmodule
