package main

import (
	"context"
	"os"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

type lvpProvider struct{}

type providerModel struct {
	URL       types.String `tfsdk:"url"`
	Token     types.String `tfsdk:"token"`
	TokenFile types.String `tfsdk:"token_file"`
	CA        types.String `tfsdk:"ca"`
	Cert      types.String `tfsdk:"cert"`
	Key       types.String `tfsdk:"key"`
}

func newProvider() provider.Provider { return &lvpProvider{} }

func (*lvpProvider) Metadata(_ context.Context, _ provider.MetadataRequest, resp *provider.MetadataResponse) {
	resp.TypeName = "lvp"
}

func (*lvpProvider) Schema(_ context.Context, _ provider.SchemaRequest, resp *provider.SchemaResponse) {
	option := func(text string, sensitive bool) schema.StringAttribute {
		return schema.StringAttribute{Optional: true, Sensitive: sensitive, Description: text}
	}
	resp.Schema = schema.Schema{
		Description: "Volumes with disk images on a libvirt/KVM host, by libvirt-volume-provisioner.",
		Attributes: map[string]schema.Attribute{
			"url":        option("Address of the server, such as https://kvm-7.example.org:8080. Default: LVP_URL.", false),
			"token":      option("API token. Default: LVP_TOKEN.", true),
			"token_file": option("File with the API token. Default: LVP_TOKEN_FILE.", false),
			"ca":         option("CA of the server's certificate (PEM). Default: LVP_CA, else the CAs of the system.", false),
			"cert":       option("Client certificate (PEM) for mutual TLS. Default: LVP_CERT.", false),
			"key":        option("Key of the client certificate. Default: LVP_KEY, else it is in cert.", false),
		},
	}
}

func (*lvpProvider) Configure(ctx context.Context, req provider.ConfigureRequest, resp *provider.ConfigureResponse) {
	var given providerModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &given)...)
	if resp.Diagnostics.HasError() {
		return
	}
	settings := connection{
		url:       or(given.URL, "LVP_URL", "http://127.0.0.1:8080"),
		token:     or(given.Token, "LVP_TOKEN", ""),
		tokenFile: or(given.TokenFile, "LVP_TOKEN_FILE", ""),
		ca:        or(given.CA, "LVP_CA", ""),
		cert:      or(given.Cert, "LVP_CERT", ""),
		key:       or(given.Key, "LVP_KEY", ""),
	}
	made, err := newClient(settings)
	if err != nil {
		resp.Diagnostics.AddError("The provider cannot be configured", err.Error())
		return
	}
	resp.ResourceData = made
}

// or returns what is given, else what the environment has, else the default.
func or(given types.String, name, fallback string) string {
	if !given.IsNull() {
		return given.ValueString()
	}
	if found := os.Getenv(name); found != "" {
		return found
	}
	return fallback
}

func (*lvpProvider) DataSources(context.Context) []func() datasource.DataSource { return nil }

func (*lvpProvider) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{func() resource.Resource { return &volumeResource{} }}
}
