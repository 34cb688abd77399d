// Behaviour of the ECP5 multiplier cell MULT18X18D, which Yosys knows as a black box only.
// Source: Lattice FPGA-TN-02205, "ECP5 and ECP5-5G sysDSP Usage Guide"; ports as in Yosys' ecp5/cells_bb.v.
//
// Modelled: operands A and B from the fabric, signed or unsigned each; registers before (REG_INPUTA, REG_INPUTB), inside (REG_PIPELINE) and behind
// (REG_OUTPUT) the multiplier, each with its own clock, clock enable and reset out of four, synchronous or asynchronous.  A sign flag passes the
// registers of its operand.  Whatever is not modelled (operand C, cascades, the high-speed clock) ends the simulation with a message.

`timescale 1ns / 1ps

module MULT18X18D (
    input A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11, A12, A13, A14, A15, A16, A17,
    input B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12, B13, B14, B15, B16, B17,
    input C0, C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13, C14, C15, C16, C17,
    input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
    input CLK0, CLK1, CLK2, CLK3, CE0, CE1, CE2, CE3, RST0, RST1, RST2, RST3,
    input SRIA0, SRIA1, SRIA2, SRIA3, SRIA4, SRIA5, SRIA6, SRIA7, SRIA8,
    input SRIA9, SRIA10, SRIA11, SRIA12, SRIA13, SRIA14, SRIA15, SRIA16, SRIA17,
    input SRIB0, SRIB1, SRIB2, SRIB3, SRIB4, SRIB5, SRIB6, SRIB7, SRIB8,
    input SRIB9, SRIB10, SRIB11, SRIB12, SRIB13, SRIB14, SRIB15, SRIB16, SRIB17,
    output SROA0, SROA1, SROA2, SROA3, SROA4, SROA5, SROA6, SROA7, SROA8,
    output SROA9, SROA10, SROA11, SROA12, SROA13, SROA14, SROA15, SROA16, SROA17,
    output SROB0, SROB1, SROB2, SROB3, SROB4, SROB5, SROB6, SROB7, SROB8,
    output SROB9, SROB10, SROB11, SROB12, SROB13, SROB14, SROB15, SROB16, SROB17,
    output ROA0, ROA1, ROA2, ROA3, ROA4, ROA5, ROA6, ROA7, ROA8,
    output ROA9, ROA10, ROA11, ROA12, ROA13, ROA14, ROA15, ROA16, ROA17,
    output ROB0, ROB1, ROB2, ROB3, ROB4, ROB5, ROB6, ROB7, ROB8,
    output ROB9, ROB10, ROB11, ROB12, ROB13, ROB14, ROB15, ROB16, ROB17,
    output ROC0, ROC1, ROC2, ROC3, ROC4, ROC5, ROC6, ROC7, ROC8,
    output ROC9, ROC10, ROC11, ROC12, ROC13, ROC14, ROC15, ROC16, ROC17,
    output P0, P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11, P12, P13, P14, P15, P16, P17,
    output P18, P19, P20, P21, P22, P23, P24, P25, P26, P27, P28, P29, P30, P31, P32, P33, P34, P35,
    output SIGNEDP
);
    parameter REG_INPUTA_CLK = "NONE";
    parameter REG_INPUTA_CE = "CE0";
    parameter REG_INPUTA_RST = "RST0";
    parameter REG_INPUTB_CLK = "NONE";
    parameter REG_INPUTB_CE = "CE0";
    parameter REG_INPUTB_RST = "RST0";
    parameter REG_INPUTC_CLK = "NONE";
    parameter REG_INPUTC_CE = "CE0";
    parameter REG_INPUTC_RST = "RST0";
    parameter REG_PIPELINE_CLK = "NONE";
    parameter REG_PIPELINE_CE = "CE0";
    parameter REG_PIPELINE_RST = "RST0";
    parameter REG_OUTPUT_CLK = "NONE";
    parameter REG_OUTPUT_CE = "CE0";
    parameter REG_OUTPUT_RST = "RST0";
    parameter CLK0_DIV = "ENABLED";
    parameter CLK1_DIV = "ENABLED";
    parameter CLK2_DIV = "ENABLED";
    parameter CLK3_DIV = "ENABLED";
    parameter HIGHSPEED_CLK = "NONE";
    parameter GSR = "ENABLED";
    parameter CAS_MATCH_REG = "FALSE";
    parameter SOURCEB_MODE = "B_SHIFT";
    parameter MULT_BYPASS = "DISABLED";
    parameter RESETMODE = "SYNC";

    initial begin
        if (REG_INPUTC_CLK != "NONE" || HIGHSPEED_CLK != "NONE" || CAS_MATCH_REG != "FALSE" || SOURCEB_MODE != "B_SHIFT"
                || MULT_BYPASS != "DISABLED") begin
            $display("MULT18X18D: a mode that this model does not have");
            $finish;
        end
        // Lattice's word for registers that take every rising edge; "DISABLED" belongs to the high-speed clock.
        if (CLK0_DIV != "ENABLED" || CLK1_DIV != "ENABLED" || CLK2_DIV != "ENABLED" || CLK3_DIV != "ENABLED") begin
            $display("MULT18X18D: CLK0_DIV to CLK3_DIV must be ENABLED, the default");
            $finish;
        end
        if (RESETMODE != "SYNC" && RESETMODE != "ASYNC") begin
            $display("MULT18X18D: RESETMODE must be SYNC or ASYNC, not %s", RESETMODE);
            $finish;
        end
    end

    wire [17:0] a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    wire [17:0] b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};

    // Operands with their signs; then the product of 19-bit signed numbers, which holds every mixture of signs.
    wire [18:0] a_late, b_late;
    MULT18X18D_register #(.WIDTH(19), .CLOCK(REG_INPUTA_CLK), .ENABLE(REG_INPUTA_CE), .RESET(REG_INPUTA_RST), .MODE(RESETMODE)) input_a (
        {CLK3, CLK2, CLK1, CLK0}, {CE3, CE2, CE1, CE0}, {RST3, RST2, RST1, RST0}, {SIGNEDA, a}, a_late);
    MULT18X18D_register #(.WIDTH(19), .CLOCK(REG_INPUTB_CLK), .ENABLE(REG_INPUTB_CE), .RESET(REG_INPUTB_RST), .MODE(RESETMODE)) input_b (
        {CLK3, CLK2, CLK1, CLK0}, {CE3, CE2, CE1, CE0}, {RST3, RST2, RST1, RST0}, {SIGNEDB, b}, b_late);
    wire signed [18:0] a_signed = {a_late[18] & a_late[17], a_late[17:0]};
    wire signed [18:0] b_signed = {b_late[18] & b_late[17], b_late[17:0]};
    wire signed [37:0] whole = a_signed * b_signed;

    wire [36:0] piped;
    wire [35:0] p;
    MULT18X18D_register #(.WIDTH(37), .CLOCK(REG_PIPELINE_CLK), .ENABLE(REG_PIPELINE_CE), .RESET(REG_PIPELINE_RST), .MODE(RESETMODE)) pipeline (
        {CLK3, CLK2, CLK1, CLK0}, {CE3, CE2, CE1, CE0}, {RST3, RST2, RST1, RST0}, {a_late[18] | b_late[18], whole[35:0]}, piped);
    MULT18X18D_register #(.WIDTH(36), .CLOCK(REG_OUTPUT_CLK), .ENABLE(REG_OUTPUT_CE), .RESET(REG_OUTPUT_RST), .MODE(RESETMODE)) result (
        {CLK3, CLK2, CLK1, CLK0}, {CE3, CE2, CE1, CE0}, {RST3, RST2, RST1, RST0}, piped[35:0], p);

    assign SIGNEDP = piped[36];  // the output register holds the product alone
    assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18,
            P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} = p;

    always @* if (SOURCEA === 1'b1 || SOURCEB === 1'b1) begin
        $display("MULT18X18D: operands from a neighbouring cell, which this model does not have");
        $finish;
    end
endmodule

// A register of the cell, or a wire where CLOCK is "NONE".  It starts at zero, as the configured device does.
module MULT18X18D_register #(
    parameter WIDTH = 1, parameter CLOCK = "NONE", parameter ENABLE = "CE0", parameter RESET = "RST0", parameter MODE = "SYNC"
) (
    input [3:0] clocks, input [3:0] enables, input [3:0] resets, input [WIDTH-1:0] d, output [WIDTH-1:0] q
);
    // An unconnected enable enables, an unconnected reset does not reset.
    wire clock = CLOCK == "CLK3" ? clocks[3] : CLOCK == "CLK2" ? clocks[2] : CLOCK == "CLK1" ? clocks[1] : clocks[0];
    wire enable = (ENABLE == "CE3" ? enables[3] : ENABLE == "CE2" ? enables[2] : ENABLE == "CE1" ? enables[1] : enables[0]) !== 1'b0;
    wire reset = (RESET == "RST3" ? resets[3] : RESET == "RST2" ? resets[2] : RESET == "RST1" ? resets[1] : resets[0]) === 1'b1;
    generate
        if (CLOCK == "NONE") begin : none
            assign q = d;
        end else if (MODE == "ASYNC") begin : asynchronous
            reg [WIDTH-1:0] value = 0;
            always @(posedge clock or posedge reset)
                if (reset) value <= 0;
                else if (enable) value <= d;
            assign q = value;
        end else begin : synchronous
            reg [WIDTH-1:0] value = 0;
            always @(posedge clock)
                if (reset) value <= 0;
                else if (enable) value <= d;
            assign q = value;
        end
    endgenerate
endmodule
